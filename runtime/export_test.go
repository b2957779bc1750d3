package runtime

// RestartWait is the pause before the next restart after so many.
var RestartWait = restartWait
