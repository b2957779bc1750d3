// Package holes copies files without reading what their holes have from the
// disk, and makes holes of zeros again where it writes. It is for archives that
// carry zeros: Go's archive/tar reads entries with holes but writes none.
package holes
