// Package gpu knows the GPUs of the host, who has which, and what a container
// has to get so that it can use what its environment has.
//
// What talks to a vendor's software is behind Driver: it runs in a process of
// its own, since a library of a driver can end the process that calls it.
package gpu
