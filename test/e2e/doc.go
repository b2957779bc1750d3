// Package e2e runs the built programs as their users do. It has no code, only
// tests.
package e2e
