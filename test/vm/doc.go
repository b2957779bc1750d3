// Package vm runs a node in a virtual machine with systemd and cgroup v2, and
// reboots it for real. It has no code, only tests.
package vm
