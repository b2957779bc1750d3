// Package nvidia is gpu.Driver by NVIDIA's own software: NVML for what there
// is and happens, nvcdi of the container toolkit for what a container needs.
//
// NVML is a library of the driver that is loaded when it is asked. A symbol
// that it lacks, or a fault of its own, ends the process; once loaded it stays,
// also after the driver was upgraded. So only the helper process (gpu/helper)
// uses this package. What is newer than the oldest driver is looked up before
// it is called.
package nvidia
