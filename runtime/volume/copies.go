package volume

import "sync"

// copies counts the copies into and out of each volume.
type copies struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *copies) enter(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = make(map[string]int)
	}
	c.count[name]++
}

func (c *copies) leave(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[name]--; c.count[name] == 0 {
		delete(c.count, name)
	}
}

func (c *copies) busy(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[name] > 0
}
