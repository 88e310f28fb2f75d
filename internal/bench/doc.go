// Package bench measures what a micro-batch of changes costs: it makes contacts of its own, without a broker or JSON,
// fills a log and a history with them, and commits batches of changes, late ones and no-ops among them, through the very
// calls that a worker makes. Beside every batch it appends the same rows to a plain Iceberg table, so that a figure can be
// told from the noise of the machine.
//
// It measures look-ups of online values as well, beside Redis itself and a Feast server, and writes of them beside redis-benchmark.
package bench
