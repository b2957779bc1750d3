// Package version is the version of the programs.
package version

// Version is set when the programs are built (see Makefile).
var Version = "development"
