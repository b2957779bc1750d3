package runtime

// RestartWait is the pause before the next restart after so many.
var RestartWait = restartWait

// KeepChanges is how many changes a watch can be resumed over.
const KeepChanges = keepChanges
