package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// copyDown copies from there to here.
func (a *app) copyDown(ctx context.Context, files remoteFiles, from, to place, f *copyFlags) error {
	if to.standard() && onTerminal(a.stdout) {
		return usagef("remotegpu … cp "+from.String()+" - | tar -t", "a tar stream is nothing for a terminal")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := files.download(ctx, from.path, f.followLink || contents(from.path))
	if err != nil {
		return err
	}
	defer stream.close() //nolint:errcheck // its end was told, or its failure
	if to.standard() {
		if _, err := io.Copy(a.stdout, stream); err != nil {
			return err
		}
		a.warnSummary(stream.summary)
		return nil
	}
	goal, err := downTo(from, to, stream.info)
	if err != nil {
		return err
	}
	u := &localUnpack{prefix: stream.info.GetName(), flags: f, umask: umask()}
	if stream.info.GetType() == remotegpuv1.FileType_FILE_TYPE_DIRECTORY {
		err = u.directory(goal, stream)
	} else {
		err = u.single(ctx, goal, stream)
	}
	if stream.failed != nil && !errors.Is(stream.failed, io.EOF) {
		return stream.failed
	}
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // the padding, and the summary
	}
	if err != nil {
		return err
	}
	stream.summary.Skipped += int64(u.skipped)
	if a.output == "json" {
		return a.json(stream.summary)
	}
	a.say("Copied %d files and directories, %s, to %s", stream.summary.GetEntries()-int64(u.skipped), size(stream.summary.GetBytes()), to)
	a.warnSummary(stream.summary)
	if u.link != "" {
		a.say("Warning: it is a link to %s, wherever that leads here; -L copies the file that it leads to there", plain(u.link))
	}
	return nil
}

func (a *app) warnSummary(summary *remotegpuv1.DownloadSummary) {
	if n := summary.GetSkipped(); n > 0 {
		a.say("Warning: %d devices, sockets, pipes or unreadable files were left out", n)
	}
	if n := summary.GetChanged(); n > 0 {
		a.say("Warning: %d files changed while they were copied", n)
	}
}

// localTarget is where a download goes here.
type localTarget struct {
	path string // that the caller named: links in it and at its end are followed
	// What gets this name in the directory path. The name comes from there, and a
	// link that is under it here may have come from there, too: it is not followed.
	name string
}

// downTo decides what name a download gets here.
func downTo(from, to place, info *remotegpuv1.FileInfo) (localTarget, error) {
	directory := info.GetType() == remotegpuv1.FileType_FILE_TYPE_DIRECTORY
	there, err := os.Stat(to.path)
	switch {
	case errors.Is(err, os.ErrNotExist) && !directory && os.IsPathSeparator(to.path[len(to.path)-1]):
		return localTarget{}, &failure{Code: "not_found", Message: "there is no directory " + to.path + " here", Hints: []string{"leave the slash out to give the file that name"}, exit: exitNotFound}
	case errors.Is(err, os.ErrNotExist):
		return localTarget{path: to.path}, nil
	case err != nil:
		return localTarget{}, fmt.Errorf("look at %s: %w", to.path, err)
	case there.IsDir() && directory && (contents(from.path) || info.GetName() == "."):
		return localTarget{path: to.path}, nil
	case there.IsDir():
		if !filepath.IsLocal(info.GetName()) || filepath.Base(info.GetName()) != info.GetName() {
			return localTarget{}, &failure{Code: "failed_precondition", Message: fmt.Sprintf("%q is no name for a file here", info.GetName()), Hints: []string{"name the file that it is to become here"}, exit: exitConflict}
		}
		return localTarget{to.path, info.GetName()}, nil
	case directory:
		return localTarget{}, notADirectory(to.path)
	}
	return localTarget{path: to.path}, nil
}
