package runtime

import (
	"context"
	"sync"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// imageClaims keeps an image from being removed between the moment in which a
// request finds it and the one in which the store says who needs it. Its zero
// value is ready.
type imageClaims struct {
	mu     sync.Mutex
	claims map[string]*imageClaim
}

type imageClaim struct {
	users    int
	removing chan struct{} // closed when the removal is over; nil: none is
}

// use claims an image, once nobody removes it any more, until release.
func (c *imageClaims) use(ctx context.Context, name string) (release func(), err error) {
	claim, err := c.free(ctx, name)
	if err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	claim.users++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		claim.users--
		c.forget(name, claim)
	}), nil
}

// remove claims an image for its removal until release. IMAGE_IN_USE when it
// is claimed for use.
func (c *imageClaims) remove(ctx context.Context, name string) (release func(), err error) {
	claim, err := c.free(ctx, name)
	if err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	if claim.users > 0 {
		return nil, problem.New(problem.ImageInUse, "something is about to be made from image %s", name).WithField("reference").
			WithHint("try again when it is there, and see who uses it with: remotegpu image ls")
	}
	over := make(chan struct{})
	claim.removing = over
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		claim.removing = nil
		close(over)
		c.forget(name, claim)
	}), nil
}

// free returns the claim of an image that nobody removes, with c.mu held.
func (c *imageClaims) free(ctx context.Context, name string) (*imageClaim, error) {
	for {
		c.mu.Lock()
		claim := c.claims[name]
		if claim == nil {
			claim = &imageClaim{}
			if c.claims == nil {
				c.claims = make(map[string]*imageClaim)
			}
			c.claims[name] = claim
		}
		over := claim.removing
		if over == nil {
			return claim, nil
		}
		c.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// forget drops a claim that nobody has. c.mu is held.
func (c *imageClaims) forget(name string, claim *imageClaim) {
	if claim.users == 0 && claim.removing == nil {
		delete(c.claims, name)
	}
}
