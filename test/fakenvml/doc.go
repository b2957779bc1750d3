// Package fakenvml is a stand-in for NVIDIA's management library in C
// (library/), so that the vendor's own code above it runs in tests: go-nvml,
// nvcdi, nvidia-ctk. What GPUs it has is written by the test, at any time.
package fakenvml
