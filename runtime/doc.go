// Package runtime is the life of an environment: what it is (Environment,
// Spec, State), what may become of it, and the Manager that makes it so
// through the small interfaces in deps.go. It decides and orders; engines,
// networks, ports, volumes and desktops do. RPC handlers call the Manager;
// the Manager calls the interfaces; there is no third step.
//
// The package is called runtime because the layout of the project fixes that
// name; files that need Go's own import it as goruntime.
package runtime
