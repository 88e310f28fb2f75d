package simulate

// queue is a binary heap that gives the entry with the least time first and, of equal times, the one with the least
// turn. Both are given by the pusher, so the order never depends on the heap.
type queue struct{ entries []entry }

type entry struct {
	at   int64 // milliseconds since 1970 UTC
	turn uint64
	slot int32 // of what the entry stands for
}

func (e entry) before(o entry) bool {
	return e.at < o.at || (e.at == o.at && e.turn < o.turn)
}

func (q *queue) empty() bool  { return len(q.entries) == 0 }
func (q *queue) first() entry { return q.entries[0] }

func (q *queue) push(e entry) {
	q.entries = append(q.entries, e)
	i := len(q.entries) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !e.before(q.entries[parent]) {
			break
		}
		q.entries[i] = q.entries[parent]
		i = parent
	}
	q.entries[i] = e
}

func (q *queue) pop() {
	last := q.entries[len(q.entries)-1]
	q.entries = q.entries[:len(q.entries)-1]
	if len(q.entries) > 0 {
		q.replaceFirst(last)
	}
}

// replaceFirst is pop and push in one walk down the heap.
func (q *queue) replaceFirst(e entry) {
	i, n := 0, len(q.entries)
	for {
		child := 2*i + 1
		if child >= n {
			break
		}
		if right := child + 1; right < n && q.entries[right].before(q.entries[child]) {
			child = right
		}
		if !q.entries[child].before(e) {
			break
		}
		q.entries[i] = q.entries[child]
		i = child
	}
	q.entries[i] = e
}
