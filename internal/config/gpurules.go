package config

import (
	"slices"
	"strings"
	"time"
)

// GPURules are how environments are given GPUs. They are settings of [gpu].
type GPURules struct {
	Enabled       bool   `toml:"enabled" comment:"Look for GPUs and give them to environments."`
	Policy        string `toml:"policy" comment:"Which of several GPUs is given: pack (one that is used already, so that whole ones stay free) or spread."`
	MaxShared     int    `toml:"max_shared" comment:"Environments that share a GPU in the mode shared."`
	Reserve       int64  `toml:"reserve" comment:"Bytes of each GPU's memory that shares leave (mode vgpu)."`
	ReleaseOnStop bool   `toml:"release_on_stop" comment:"Stopped environments give their GPUs back; their next start takes what is free then."`
	Cure          string `toml:"cure" comment:"What is done about an environment that runs without its GPU, as after the driver was replaced: report, or restart."`
	HandOver      int    `toml:"hand_over" comment:"Seconds that a start waits for processes of others to leave a GPU that the environment is to have alone."`
	Leftover      int64  `toml:"leftover" comment:"Bytes of such a GPU's memory that may be in use though no process is there, of a MIG instance in proportion: the driver takes some, so 0 may refuse all."`
}

func gpuPolicies() []string { return []string{"pack", "spread"} }
func gpuCures() []string    { return []string{"report", "restart"} }

func defaultGPURules() GPURules {
	return GPURules{Enabled: true, Policy: "pack", MaxShared: 4, Reserve: 512 << 20, Cure: "report", HandOver: 15, Leftover: 2 << 30}
}

// HandOverTime is HandOver.
func (r *GPURules) HandOverTime() time.Duration { return time.Duration(r.HandOver) * time.Second }

func (r *GPURules) checkRules() error {
	for field, number := range map[string]int64{"reserve": r.Reserve, "leftover": r.Leftover} {
		if number < 0 {
			return fault("gpu."+field, "use a number of bytes from 0 on", "%d is negative", number)
		}
	}
	switch {
	case !slices.Contains(gpuPolicies(), r.Policy):
		return fault("gpu.policy", "use one of "+strings.Join(gpuPolicies(), ", "), "there is no policy %q", r.Policy)
	case !slices.Contains(gpuCures(), r.Cure):
		return fault("gpu.cure", "use one of "+strings.Join(gpuCures(), ", "), "there is no cure %q", r.Cure)
	case r.MaxShared < 1 || r.MaxShared > 64:
		return fault("gpu.max_shared", "use 1 to 64", "%d environments cannot share a GPU", r.MaxShared)
	case r.HandOver < 1 || r.HandOver > 300:
		return fault("gpu.hand_over", "use 1 to 300 seconds", "%d is outside", r.HandOver)
	}
	return nil
}
