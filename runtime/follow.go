package runtime

import "time"

// follow tells those who look after running and ended environments what the
// store now says of one. What is older than they know is left out: changes may
// be told of in another order than they were made.
func (m *Manager) follow(env *Environment) {
	m.followMu.Lock()
	defer m.followMu.Unlock()
	if !m.isNews(env, time.Now()) {
		return
	}
	m.followRestart(env)
	m.health.follow(env)
	m.followExpiry(env)
	m.names.follow(env)
}

// oldForms is for how long an older form of an environment may be told of
// after its end: as long as a pass goes on with a list that it has read.
const oldForms = 10 * time.Minute

// departed is an environment that was deleted.
type departed struct {
	id string
	at time.Time
}

// isNews tells whether an environment is not older than what was told of it
// last. The revision of one that was deleted is kept for a while: an older form
// would bring back its names, whose address is somebody else's soon. The caller
// holds followMu.
func (m *Manager) isNews(env *Environment, now time.Time) bool {
	if env.Revision < m.followed[env.ID] {
		return false
	}
	m.followed[env.ID] = env.Revision
	if env.State == Deleted {
		m.departed = append(m.departed, departed{env.ID, now})
	}
	for len(m.departed) > 0 && now.Sub(m.departed[0].at) > oldForms {
		delete(m.followed, m.departed[0].id)
		m.departed = m.departed[1:]
	}
	return true
}
