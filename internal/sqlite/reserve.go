package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ReservedBytes is the room that Reserve takes, about twice: in the file and in
// its write-ahead log. The log is begun anew after 1000 pages of 4 KiB, so it
// needs no more.
const ReservedBytes = 5 << 20

// Reserve takes room on the disk that later writes use, so that some succeed
// after the disk is full: pages of the file that nothing is in, and blocks of the
// write-ahead log. Nobody else can take them. What is reserved already is left
// as it is, so call it again now and then. A DISK_FULL problem when there is no
// room to take.
func (db *DB) Reserve(ctx context.Context) error {
	if err := db.reserveLog(); err != nil {
		return err
	}
	var free, size int64
	err := db.reader.QueryRowContext(ctx, "SELECT freelist_count, page_size FROM pragma_freelist_count, pragma_page_size").Scan(&free, &size)
	if err != nil {
		return fmt.Errorf("reserve room: %w", Error(err))
	}
	if free*size >= ReservedBytes/2 {
		return nil
	}
	// Two transactions: pages that are freed in the one that takes them are
	// written nowhere, and would be holes of the file. A table that a crash left
	// in between is dropped by the next call.
	for _, statement := range []string{
		"DROP TABLE IF EXISTS room",
		fmt.Sprintf("CREATE TABLE room AS SELECT zeroblob(%d) AS bytes", ReservedBytes),
		"DROP TABLE room",
	} {
		err := db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, statement)
			return err
		})
		if err != nil {
			return fmt.Errorf("reserve room: %w", err)
		}
	}
	return nil
}

// reserveLog takes blocks for the write-ahead log. The file itself must never be
// opened like that: closing it would give up SQLite's locks of it, which are the
// process's (fcntl(2)). The log has none.
func (db *DB) reserveLog() (err error) {
	file, err := os.OpenFile(db.path+"-wal", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing was written yet
	}
	if err != nil {
		return fmt.Errorf("reserve room: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	// To take blocks that are taken changes the file's times, which the disk of
	// an idle node would be woken for.
	var stat unix.Stat_t
	if unix.Fstat(int(file.Fd()), &stat) == nil && stat.Blocks*512 >= ReservedBytes { // st_blocks: of 512 bytes, stat(2)
		return nil
	}
	err = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, ReservedBytes)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // then only what the log has had once is its
		return fmt.Errorf("reserve room: %w", err)
	}
	return nil
}
