// Package e2e holds the tests that drive the loam binary from end to end: files and topics in, then histories, training
// sets, dead letters and online values out, each held against an answer that shares no code with what made it. It has no
// code of its own.
//
// The binary is the one that LOAM_TEST_BINARY names (a relative path starts at the repository's root), or else is built
// once for all tests of the package. Data of ../shared beside the repository may be absent; the tests on it then skip.
package e2e
