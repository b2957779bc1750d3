package nvidia

import (
	"fmt"
	"slices"
)

// applicationXIDs are errors of programs, after which a GPU goes on: what
// NVIDIA's device plugin for Kubernetes ignores.
var applicationXIDs = []int{13, 31, 43, 45, 68, 109}

// xidNames says what happened (NVIDIA, "XID Errors").
var xidNames = map[int]string{
	13:  "a program's graphics exception",
	31:  "a program's memory page fault",
	43:  "a program stopped the GPU",
	45:  "a program was ended",
	48:  "a double bit ECC error",
	61:  "its microcontroller stopped",
	62:  "its microcontroller halted",
	63:  "a row of memory has to be remapped",
	64:  "a row of memory could not be remapped",
	68:  "a program's video exception",
	69:  "a graphics engine class error",
	74:  "an NVLink error",
	79:  "the GPU has fallen off the bus",
	92:  "many corrected ECC errors",
	94:  "a contained ECC error",
	95:  "an uncontained ECC error",
	109: "a program's context switch timed out",
	119: "its GSP does not answer",
	120: "an error of its GSP",
	140: "an unrecovered ECC error",
	143: "it could not be initialized",
	154: "the driver asks for recovery",
}

// describe is an XID for people.
func describe(xid int) string {
	if name, known := xidNames[xid]; known {
		return fmt.Sprintf("XID %d: %s", xid, name)
	}
	return fmt.Sprintf("XID %d", xid)
}

// isFatal says whether a GPU is to have no new lease after an XID.
func isFatal(xid int) bool { return !slices.Contains(applicationXIDs, xid) }
