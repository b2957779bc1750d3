// Package fault has points between the steps of the daemon's work at which a
// test can kill the daemon or fail the step. They exist in programs built with
// the tag faultpoints alone; without it every function here is empty and the
// compiler leaves nothing of a call, the point's name included
// (TestNoFaultPoints of test/e2e looks for them in the program).
//
// The environment variable REMOTEGPU_FAULTPOINTS names a directory:
//
//	kinds   gets the kinds of operations that the program knows, one a line
//	trace   gets each point that is passed: scope, point and what of it
//	        (before, after or between), tab-separated
//	arm     is read at each point: "kill" or "fail", scope, what, point and
//	        the how many-th time since the file was written, tab-separated
//	fired   is made when an armed point is reached; a failed step then goes on
//	        as it does without
//
// A scope is whose step it is: the kind of the operation, or "request" and
// the kind while it is written down. What is done for nobody has none.
package fault
