// Package desktop is the host's side of the desktops inside environments: the
// directory of the RFB socket, the passwords, and the connections that
// gateway, screenshots and readiness make.
package desktop

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/desktop/rfb"
	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// Where an environment finds what Prepare makes.
const (
	SocketTarget = "/run/remotegpu/rfb"
	SecretTarget = "/run/remotegpu/secret" //nolint:gosec // G101: a path
	SocketPath   = SocketTarget + "/" + socketName
	PasswordPath = SecretTarget + "/" + passwordFile
	passwordFile = "vncpasswd"
	secretDir    = "secret"
)

// Config is what a node says about its desktops.
type Config struct {
	// Dir is where the sockets and passwords lie: on a tmpfs, since the
	// passwords must not outlive the machine. Usually /run/remotegpu/desktop.
	Dir string
	// InEnvironment tells whether a process belongs to an environment.
	InEnvironment func(pid int, envID string) (bool, error)
	Log           *slog.Logger
}

// Desktops are the desktops of one node. It implements runtime.Desktops; its
// methods are safe for concurrent use.
type Desktops struct {
	dir    string
	dialer Dialer
	log    *slog.Logger
	locks  keylock.Map[string]
	turns  keylock.Map[string] // one picture of an environment at a time
	small  chan struct{}       // one slot per picture in memory
	large  chan struct{}
}

// New returns the desktops below a directory.
func New(c Config) *Desktops {
	return &Desktops{
		dir:    c.Dir,
		dialer: Dialer{Dir: c.Dir, InEnvironment: c.InEnvironment},
		log:    c.Log,
		small:  make(chan struct{}, smallPictures),
		large:  make(chan struct{}, largePictures),
	}
}

// Prepare makes, below Dir/<envID>, the directory of the RFB socket and the
// password file, and returns the mounts and variables that a container needs.
// What is there already is kept, but for passwords when spec names another. On
// error nothing new is left.
//
// The socket's directory is a tiny tmpfs of its own: the tenant writes there,
// and must not be able to fill the host's /run.
func (d *Desktops) Prepare(ctx context.Context, envID string, spec runtime.Desktop) (
	mounts []volume.Staged, env []string, err error,
) {
	if err := checkID(envID); err != nil {
		return nil, nil, err
	}
	unlock, err := d.locks.Lock(ctx, envID)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	home := filepath.Join(d.dir, envID)
	_, statErr := os.Lstat(home)
	isNew := errors.Is(statErr, fs.ErrNotExist)
	if err := d.prepare(home, spec.Password); err != nil {
		err = fmt.Errorf("prepare desktop of environment %s: %w", envID, err)
		if isNew {
			err = errors.Join(err, remove(home))
		}
		return nil, nil, err
	}
	mounts = []volume.Staged{
		{
			FSType: "bind", Source: filepath.Join(home, socketDir), Target: SocketTarget,
			Options: []string{"rbind", "rw", "nosuid", "nodev", "noexec"},
		},
		{
			FSType: "bind", Source: filepath.Join(home, secretDir), Target: SecretTarget,
			Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"},
		},
	}
	env = []string{
		"DISPLAY=:1",
		"VNC_RESOLUTION=" + strconv.Itoa(spec.Width) + "x" + strconv.Itoa(spec.Height),
		"VNC_COLOR_DEPTH=" + strconv.Itoa(spec.Depth),
		"REMOTEGPU_RFB_SOCKET=" + SocketPath,
		"REMOTEGPU_VNC_PASSWORD_FILE=" + PasswordPath,
	}
	return mounts, env, nil
}

func (d *Desktops) prepare(home, password string) error {
	// Nobody but root may pass: inside, a directory is writable by all.
	for _, dir := range []string{d.dir, home, filepath.Join(home, secretDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
	}
	if err := mountSocketDir(home); err != nil {
		return err
	}
	path := filepath.Join(home, secretDir, passwordFile)
	passwords, err := readPasswords(path)
	if err == nil && (password == "" || password == passwords.Full) {
		return nil
	}
	if password == "" {
		if password, err = randomPassword(); err != nil {
			return err
		}
	}
	passwords.Full = password
	if passwords.ViewOnly, err = randomPassword(); err != nil {
		return err
	}
	file, err := passwords.Encode()
	if err != nil {
		return err
	}
	return atomicfile.Write(path, file, 0o600)
}

func mountSocketDir(home string) error {
	dir := filepath.Join(home, socketDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	mounted, err := isMountPoint(home, dir)
	if err != nil || mounted {
		return err
	}
	if err := unix.Mount("remotegpu-rfb", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		"size=64k,nr_inodes=64,mode=1777"); err != nil {
		return &fs.PathError{Op: "mount tmpfs on", Path: dir, Err: err}
	}
	return nil
}

func isMountPoint(parent, dir string) (bool, error) {
	var outside, inside unix.Stat_t
	if err := unix.Lstat(parent, &outside); err != nil {
		return false, &fs.PathError{Op: "stat", Path: parent, Err: err}
	}
	if err := unix.Lstat(dir, &inside); err != nil {
		return false, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	return outside.Dev != inside.Dev, nil
}

// randomPassword returns 8 characters of 62: 47 bits, all that VNC
// authentication can use of printable ones.
func randomPassword() (string, error) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	password := make([]byte, rfb.PasswordSize)
	for i := range password {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			return "", fmt.Errorf("make password: %w", err)
		}
		password[i] = alphabet[n.Int64()]
	}
	return string(password), nil
}

func readPasswords(path string) (rfb.Passwords, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return rfb.Passwords{}, err
	}
	return rfb.DecodePasswords(file)
}

// passwords returns those of an environment that is prepared.
func (d *Desktops) passwords(envID string) (rfb.Passwords, error) {
	passwords, err := readPasswords(filepath.Join(d.dir, envID, secretDir, passwordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return rfb.Passwords{}, problem.New(problem.DesktopAbsent, "environment %s has no desktop", envID).
			WithHint("create it with a desktop")
	}
	if err != nil {
		return rfb.Passwords{}, fmt.Errorf("read desktop passwords of environment %s: %w", envID, err)
	}
	return passwords, nil
}

// Remove removes what Prepare made. What is absent is removed.
func (d *Desktops) Remove(ctx context.Context, envID string) error {
	if err := checkID(envID); err != nil {
		return err
	}
	unlock, err := d.locks.Lock(ctx, envID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := remove(filepath.Join(d.dir, envID)); err != nil {
		return fmt.Errorf("remove desktop of environment %s: %w", envID, err)
	}
	return nil
}

func remove(home string) error {
	dir := filepath.Join(home, socketDir)
	for {
		// EINVAL: nothing is mounted there any more.
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return &fs.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
	return os.RemoveAll(home)
}

// Prepared lists the environments that have something prepared, by id.
func (d *Desktops) Prepared(context.Context) ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list desktops: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if entry.IsDir() && checkID(entry.Name()) == nil {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}
