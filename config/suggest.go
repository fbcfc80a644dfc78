package config

import (
	"iter"
	"slices"
	"strings"
)

// didYouMean is a want that names the candidate closest to what was written, or otherwise when none is close.
func didYouMean(written string, candidates iter.Seq[string], otherwise string) string {
	if c := closest(written, candidates); c != "" {
		return "perhaps " + c
	}
	return otherwise
}

// closest returns the candidate that fewest edits turn into what was written, or "" when that would be a guess.
func closest(written string, candidates iter.Seq[string]) string {
	if len(written) > 64 { // a key that long is no slip of the finger, and the comparison takes time
		return ""
	}
	lower := strings.ToLower(strings.ReplaceAll(written, "-", "_"))
	best, bestDistance := "", 1+min(3, len(written)/3)
	for _, c := range slices.Sorted(candidates) {
		if len(c) > 64 {
			continue
		}
		if d := distance(lower, strings.ToLower(strings.ReplaceAll(c, "-", "_"))); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts the letters to add, drop, change, or swap with their neighbour between a and b.
func distance(a, b string) int {
	var older []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
		older, last = last, row
	}
	return last[len(b)]
}
