package pit

// forest is a binary tree for each entity over its labels. An event belongs to a range of an entity's labels; it is added to
// the few nodes that make up that range, and in the end each node is pushed down to its leaves. So what an event costs grows
// with the logarithm of how many labels see it. An entity with n labels has the nodes 1 to 2n-1 at twice its first slot: node
// i has the children 2i and 2i+1, and the leaves are the last n, a slot each.
type forest struct{ slots *slots }

// nodes is how many nodes there may be.
func (f *forest) nodes() int { return 2 * len(f.slots.bounds) }

// cover appends the nodes that make up an entity's slots from first to before end.
func (f *forest) cover(nodes []int32, entity int64, first, end int32) []int32 {
	base := f.slots.starts[entity]
	n := f.slots.starts[entity+1] - base
	for low, high := first-base+n, end-base+n; low < high; low, high = low/2, high/2 {
		if low%2 == 1 {
			nodes = append(nodes, 2*base+low)
			low++
		}
		if high%2 == 1 {
			high--
			nodes = append(nodes, 2*base+high)
		}
	}
	return nodes
}

// settle pushes every node of an accumulator down to the leaves.
func (f *forest) settle(a accumulator) {
	for e := range len(f.slots.starts) - 1 {
		base, n := f.slots.starts[e], f.slots.starts[e+1]-f.slots.starts[e]
		for node := int32(1); node < n; node++ {
			a.push(2*base+node, 2*base+2*node)
			a.push(2*base+node, 2*base+2*node+1)
		}
	}
}

// leaves calls use with the leaf of every slot, in their order.
func (f *forest) leaves(use func(node int32)) {
	for e := range len(f.slots.starts) - 1 {
		base, end := f.slots.starts[e], f.slots.starts[e+1]
		for slot := base; slot < end; slot++ {
			use(end + slot) // 2*base + n + (slot - base)
		}
	}
}

// walk goes over every tree from its root: visit is told when a node is entered and left, and leaf of each slot between.
func (f *forest) walk(visit func(node int32, enter bool), leaf func(slot int32)) {
	for e := range len(f.slots.starts) - 1 {
		base, n := f.slots.starts[e], f.slots.starts[e+1]-f.slots.starts[e]
		var from func(node int32)
		from = func(node int32) {
			visit(2*base+node, true)
			if node >= n {
				leaf(base + node - n)
			} else {
				from(2 * node)
				from(2*node + 1)
			}
			visit(2*base+node, false)
		}
		if n > 0 {
			from(1)
		}
	}
}
