package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

const sizeHelp = "bytes, or with K, M, G or T (powers of 1024; 8G, 8GB, 8Gi and 8GiB are the same)"

// parseSize reads a size as docker does. what names the flag or option that it
// is of.
func parseSize(what, text string) (int64, error) {
	if text == "" {
		return 0, usagef("write "+sizeHelp+"; or leave it out", "%s is empty", what)
	}
	number := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit := strings.ToLower(text[len(number):])
	shift := map[string]uint{
		"": 0, "b": 0, "k": 10, "kb": 10, "ki": 10, "kib": 10, "m": 20, "mb": 20, "mi": 20, "mib": 20,
		"g": 30, "gb": 30, "gi": 30, "gib": 30, "t": 40, "tb": 40, "ti": 40, "tib": 40,
	}
	bits, known := shift[unit]
	value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	bytes := value * float64(int64(1)<<bits)
	if err != nil || !known || math.IsNaN(bytes) || bytes < 0 || bytes >= math.MaxInt64 || strings.ContainsAny(number, "xXpP_+") {
		return 0, usagef("write "+sizeHelp, "%s %q is no size", what, text)
	}
	return int64(bytes), nil
}

// size writes bytes for people.
func size(bytes int64) string {
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + " " + unit
}
