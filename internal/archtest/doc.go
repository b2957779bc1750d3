// Package archtest holds the shape of the repository: which package may import
// which, what a program may link, and that decisions are written down. It has
// no code, only tests.
package archtest
