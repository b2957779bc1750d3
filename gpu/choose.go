package gpu

import (
	"cmp"
	"slices"
)

// choose picks count of the GPUs that would do. By the policy first; of equals
// those that are linked and near to each other, and that leave such groups
// whole.
func choose(able []candidate, count int, kept []*Device, rules *Rules, all []account) []candidate {
	ranked := slices.Clone(able)
	slices.SortStableFunc(ranked, func(x, y candidate) int { return rules.compare(x, y, all) })
	if count == 1 && len(kept) == 0 {
		return ranked[:1]
	}
	var best []candidate
	var bestScore []int
	for seed := range ranked {
		picked := grow(ranked, seed, count, kept)
		score := []int{-links(picked, kept), nodes(picked, kept), ranks(picked, ranked)}
		if best == nil || slices.Compare(score, bestScore) < 0 {
			best, bestScore = picked, score
		}
	}
	slices.SortStableFunc(best, func(x, y candidate) int { return cmp.Compare(x.PCI, y.PCI) })
	return best
}

// grow takes the one at seed and then always the one that is nearest to those
// that there are.
func grow(ranked []candidate, seed, count int, kept []*Device) []candidate {
	picked := []candidate{ranked[seed]}
	for len(picked) < count {
		best, bestScore := -1, []int(nil)
		for i := range ranked {
			if slices.ContainsFunc(picked, func(c candidate) bool { return c.UUID == ranked[i].UUID }) {
				continue
			}
			with := append(slices.Clone(picked), ranked[i])
			score := []int{-links(with, kept), nodes(with, kept), i}
			if best < 0 || slices.Compare(score, bestScore) < 0 {
				best, bestScore = i, score
			}
		}
		picked = append(picked, ranked[best])
	}
	return picked
}

// compare orders GPUs by how well one of them does alone.
func (r *Rules) compare(x, y candidate, all []account) int {
	used := cmp.Compare(x.used(), y.used())
	free := cmp.Compare(freeAround(x.account, all), freeAround(y.account, all))
	if r.Policy == Spread {
		free = -free
	} else {
		used = -used
	}
	return cmp.Or(
		preferFalse(x.MIG.Pending, y.MIG.Pending), // it is about to change
		used,
		preferTrue(x.place.exists, y.place.exists),
		cmp.Compare(y.place.hole, x.place.hole),
		preferFalse(x.MIG.Capable, y.MIG.Capable), // kept for who wants instances
		cmp.Compare(x.MemoryBytes, y.MemoryBytes), // no more than is needed
		free,
		cmp.Compare(x.PCI, y.PCI), cmp.Compare(x.UUID, y.UUID),
	)
}

func preferTrue(x, y bool) int { return preferFalse(!x, !y) }

func preferFalse(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	default:
		return -1
	}
}

// used is how much of a GPU is given, in thousandths.
func (c *candidate) used() int {
	switch c.mode() {
	case VGPU:
		memory, percent := c.shares()
		thousandths := 0
		if c.MemoryBytes > 0 {
			thousandths = int(min(1000, memory*1000/c.MemoryBytes))
		}
		return max(1, thousandths, percent*10)
	case MIGMode:
		slices := 0
		for _, l := range c.held {
			slices += l.Placement.Size
		}
		return max(1, slices*1000/64)
	case Shared:
		return len(c.held)
	default:
		return 0
	}
}

// freeAround counts the free GPUs that are linked with one, or, where none are
// linked at all, those of its NUMA node.
func freeAround(a *account, all []account) (free int) {
	for i := range all {
		other := &all[i]
		if other.UUID == a.UUID || len(other.held) > 0 {
			continue
		}
		if slices.Contains(a.Peers, other.UUID) || len(a.Peers) == 0 && other.NUMANode == a.NUMANode {
			free++
		}
	}
	return free
}

// links counts the pairs that NVLink connects.
func links(picked []candidate, kept []*Device) (count int) {
	for i := range picked {
		for _, other := range picked[:i] {
			if slices.Contains(picked[i].Peers, other.UUID) {
				count++
			}
		}
		for _, other := range kept {
			if slices.Contains(picked[i].Peers, other.UUID) {
				count++
			}
		}
	}
	return count
}

// nodes counts the NUMA nodes that they are on.
func nodes(picked []candidate, kept []*Device) int {
	seen := make(map[int]bool)
	for i := range picked {
		seen[picked[i].NUMANode] = true
	}
	for _, d := range kept {
		seen[d.NUMANode] = true
	}
	return len(seen)
}

// ranks is the sum of the places that they have by themselves.
func ranks(picked, ranked []candidate) (sum int) {
	for i := range picked {
		sum += slices.IndexFunc(ranked, func(c candidate) bool { return c.UUID == picked[i].UUID })
	}
	return sum
}
