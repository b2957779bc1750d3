package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// copyFlags are the flags of cp.
type copyFlags struct {
	archive, followLink, noOverwrite bool
	owner                            string
}

const copyHelp = `A place is NAME:PATH, a path here has no colon, or begins with / or a dot. A PATH
there begins at /, with or without a slash at its beginning; there is always one.
What is copied where is as with cp -r and docker cp:

  a file       to a directory: into it; otherwise it gets that name
  a directory  to a directory: into it; with /. at its end, what is in it;
               to what is not there: it gets that name
  -            a tar stream, from standard input into a directory, or to
               standard output

Links are copied as links, and -L follows the one that is named. Hard links among
what is copied stay. Files replace those that are there, each at once: a copy
that breaks off leaves no half file, and another name of the old file keeps the
old content. Directories that are there stay as they are. Devices and sockets
are left out, and FIFOs here. What cannot have its name here is left out, too;
the rest is copied, and the command fails at its end.
Holes of files stay holes, and long runs of zeros become some, but all of a file
passes through the connection: to copy one of which little is data there, use
tar --sparse -c FILE | remotegpu ... cp - NAME:DIRECTORY

Without -a what is copied belongs to root there (or --owner), and to you here,
has no setuid or setgid bits, and here no permissions that your umask takes
away. A file that is there here keeps its permissions and, where that is
allowed, its owner.

A device, a FIFO or /dev/stdout that is named as the target here is written to,
and a link that is named is followed. Nothing else is: what comes out of an
environment is its tenant's, links to anywhere included. Do not name a target
that such a link may be at; a directory of its own is safe.`

func (a *app) envCopy() *cobra.Command {
	return a.copyCommand("Copy files into or out of an environment", `cp copies files into or out of an environment, running or not. Nothing in the
environment helps, so its image needs no tools. In one that does not run there
are no mounts: files of volumes are reached with "volume cp".

`+copyHelp, func(c *clients, name string) remoteFiles { return envFiles{c, a.project, name} }, a.completeEnvs)
}

func (a *app) volumeCopy() *cobra.Command {
	return a.copyCommand("Copy files into or out of a volume", `cp copies files into or out of a volume, whether environments use it or not.

`+copyHelp, func(c *clients, name string) remoteFiles { return volumeFiles{c, name} }, a.completeVolumes)
}

func (a *app) copyCommand(short, long string, open func(c *clients, name string) remoteFiles, names cobra.CompletionFunc) *cobra.Command {
	var f copyFlags
	cmd := &cobra.Command{
		Use: "cp SRC DST", Short: short, Long: long, Args: cobra.ExactArgs(2), ValidArgsFunction: completePlaces(names),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := parsePlace(args[0]), parsePlace(args[1])
			for _, p := range []place{from, to} {
				if p.name != "" && p.path == "" {
					return usagef("write "+p.name+":/ for all of it, or "+p.name+":/PATH", "%s: names no path", p.name)
				}
			}
			if (from.name == "") == (to.name == "") || from.path == "" || to.path == "" {
				return usagef("write NAME:PATH for the one, and a path or - for the other", "one of SRC and DST is there, the other here")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			if to.name != "" {
				return a.copyUp(cmd.Context(), open(c, to.name), from, to, &f)
			}
			if f.owner != "" {
				return usagef("leave --owner out", "only what is copied there has an owner of your choice")
			}
			return a.copyDown(cmd.Context(), open(c, from.name), from, to, &f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.archive, "archive", "a", false, "keep user, group, setuid and setgid bits")
	flags.BoolVarP(&f.followLink, "follow-link", "L", false, "follow SRC if it is a link")
	flags.BoolVar(&f.noOverwrite, "no-overwrite", false, "fail rather than replace a file")
	flags.StringVar(&f.owner, "owner", "", "who owns what is copied there: user, user:group, or numbers")
	return cmd
}

// place is one side of a copy.
type place struct {
	name string // of environment or volume; "": here
	path string
}

func (p place) String() string {
	if p.name == "" {
		return p.path
	}
	return p.name + ":" + p.path
}

// parsePlace takes NAME:PATH apart. What begins with / or . is a path here,
// and so is what has a separator before its colon, or a drive letter.
func parsePlace(text string) place {
	name, path, remote := strings.Cut(text, ":")
	if !remote || name == "" || strings.HasPrefix(text, ".") || strings.ContainsAny(name, `/\`) || filepath.VolumeName(text) != "" {
		return place{path: text}
	}
	return place{name, path}
}

// standard says whether a place is standard input or output.
func (p place) standard() bool { return p.name == "" && p.path == "-" }

// contents says whether a path means what is in a directory.
func contents(path string) bool {
	path = strings.ReplaceAll(path, string(filepath.Separator), "/")
	return path == "." || strings.HasSuffix(path, "/.")
}

// target is where a copy to a remote path really goes.
type target struct {
	path string                // with a link at its end followed
	info *remotegpuv1.FileInfo // nil: nothing is there
}

// resolve follows links at the end of a remote path by hand, so that a file is
// written where a link leads, also when nothing is there.
func resolve(ctx context.Context, a *app, files remoteFiles, path string) (target, error) {
	for range 16 {
		info, err := files.stat(ctx, path)
		if err != nil {
			if a.explain(ctx, err).Reason == "FILE_NOT_FOUND" {
				return target{path: path}, nil
			}
			return target{}, err
		}
		if info.GetType() != remotegpuv1.FileType_FILE_TYPE_LINK {
			return target{path, info}, nil
		}
		if path = info.GetLinkTarget(); !strings.HasPrefix(path, "/") {
			dir, _ := split(path)
			path = dir + "/" + info.GetLinkTarget()
		}
	}
	return target{}, usagef("name the file itself", "%s goes through too many links", path)
}

// split takes the last element off a remote path, and no other meaning: what
// links and dots in it lead to the node knows.
func split(path string) (dir, base string) {
	path = strings.TrimRight(path, "/")
	at := strings.LastIndexByte(path, '/')
	if at <= 0 {
		return "/", path[at+1:]
	}
	return path[:at], path[at+1:]
}

// copyUp copies from here to there.
func (a *app) copyUp(ctx context.Context, files remoteFiles, from, to place, f *copyFlags) error {
	if f.archive && f.owner != "" {
		return usagef("leave one of both out", "-a keeps owners, --owner sets one")
	}
	if from.standard() {
		if onTerminal(a.stdin) {
			return usagef("tar -c DIR | remotegpu … cp - "+to.String(), "a tar stream is not typed")
		}
		result, err := files.upload(ctx, to.path, f, a.stdin)
		return a.copied(result, err, to)
	}
	info, err := localInfo(from.path, f.followLink)
	if err != nil {
		return err
	}
	goal, err := resolve(ctx, a, files, to.path)
	if err != nil {
		return err
	}
	dir, name, err := upTo(from, to, info, goal)
	if err != nil {
		return err
	}
	pack := &localPack{root: from.path, name: name, info: info, archive: f.archive}
	reader, writer := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		// Headers, small files and padding come in pieces of which none is worth a
		// message.
		buffered := bufio.NewWriterSize(writer, uploadChunk)
		err := pack.write(buffered)
		// Also when it failed: what was whole by then is to arrive.
		if flushed := buffered.Flush(); err == nil {
			err = flushed
		}
		packed <- err
		_ = writer.CloseWithError(err)
	}()
	result, err := files.upload(ctx, dir, f, reader)
	_ = reader.CloseWithError(errUploadOver)
	if failed := <-packed; failed != nil && !errors.Is(failed, errUploadOver) {
		return failed // the node knows only that the stream was cut
	}
	if err == nil {
		pack.warn(a)
	}
	return a.copied(result, err, to)
}

// errUploadOver ends the reading of files for an upload that has ended.
var errUploadOver = errors.New("the upload has ended")

// localInfo looks at what is to be copied from here.
func localInfo(path string, follow bool) (os.FileInfo, error) {
	look := os.Lstat
	if follow || contents(path) || strings.HasSuffix(path, string(filepath.Separator)) {
		look = os.Stat
	}
	info, err := look(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &failure{Code: "not_found", Message: path + " does not exist here", Hints: []string{"check the path"}, exit: exitNotFound}
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if special(info) {
		return nil, &failure{Code: "failed_precondition", Message: path + " is a device, a FIFO or a socket", Hints: []string{"only files, links and directories can be copied; a tar stream is read from standard input (-)"}, exit: exitConflict}
	}
	return info, nil
}

// upTo decides what directory an upload goes to, and what name it gets there;
// "." when it is what is in a directory.
func upTo(from, to place, info os.FileInfo, goal target) (dir, name string, err error) {
	switch {
	case goal.info == nil && strings.HasSuffix(to.path, "/") && !info.IsDir():
		return "", "", &failure{Code: "not_found", Message: fmt.Sprintf("there is no directory %s", to), Hints: []string{"leave the slash out to give the file that name"}, exit: exitNotFound}
	case goal.info == nil:
		dir, name = split(goal.path)
	case goal.info.GetType() == remotegpuv1.FileType_FILE_TYPE_DIRECTORY && info.IsDir() && contents(from.path):
		dir, name = goal.path, "."
	case goal.info.GetType() == remotegpuv1.FileType_FILE_TYPE_DIRECTORY:
		absolute, err := filepath.Abs(from.path)
		if err != nil {
			return "", "", fmt.Errorf("find out where %s is: %w", from.path, err)
		}
		dir, name = goal.path, filepath.Base(absolute)
	case info.IsDir():
		return "", "", notADirectory(to.String())
	default:
		dir, name = split(goal.path)
	}
	if name == "" || name == ".." || strings.ContainsAny(name, `/\`) {
		return "", "", usagef("name a file or directory", "%s has no name to give to what is copied", to)
	}
	return dir, name, nil
}

func notADirectory(path string) error {
	return &failure{Code: "failed_precondition", Message: fmt.Sprintf("%s is a file, and what is copied is a directory", path), Hints: []string{"choose another name"}, exit: exitConflict}
}

// copied says what was done.
func (a *app) copied(result *remotegpuv1.UploadResult, err error, to place) error {
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(result)
	}
	a.say("Copied %d files and directories, %s, to %s", result.GetEntries(), size(result.GetBytes()), plain(to.String()))
	return nil
}
