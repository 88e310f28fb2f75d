package schema

// kind says what the values of a type become as JSON.
type kind uint8

const (
	anything   kind = iota // whatever JSON can say: the kind of a shape that is not filled in
	nothing                // null alone
	flag                   // true or false
	whole                  // a whole number
	float                  // a binary floating-point number
	number                 // a number of any kind
	decimal                // a number with so many digits
	text                   // a string of any kind
	word                   // a string that is no time: of an enum, a uuid, a time of day, a time without a zone
	binaryText             // a string in base64
	moment                 // a string: a time with a zone
	date                   // a string: a date
	list                   // a list of elem
	record                 // an object with fields
	mapping                // an object whose members are data, each of them an elem
)

// shape is what a writer's schema says of a value. Shapes of schemas that hold themselves are cyclic.
type shape struct {
	kind             kind
	name             string            // of the type, as its schema language says it
	fields           map[string]*shape // of a record
	open             bool              // a record that may have other fields, too
	elem             *shape            // of a list or a mapping
	precision, scale int               // of a decimal
	choices          []*shape          // where it isn't 0, the value is of one of these, and nothing else here is set
	// implicit says that an absent value can't be told from a zero: a field of Protobuf without presence.
	implicit bool
}

// alternatives are the shapes that a value may have.
func (s *shape) alternatives() []*shape {
	if len(s.choices) > 0 {
		return s.choices
	}
	return []*shape{s}
}

// search is what was found of a path.
type search struct {
	found   []*shape // what the value may be, null aside
	null    bool     // it may be null
	open    bool     // the schema doesn't rule out that it is there, though it doesn't say so
	blocked string   // the type of what stands on the way and is no object; "" for none
	at      int      // how many names of the path lead to what is blocked
	seen    map[step]bool
}

// step is where a search has come.
type step struct {
	*shape
	at int
}

// find looks up what stands at a path.
func (s *shape) find(path []string) search {
	r := search{seen: map[step]bool{}}
	s.search(path, 0, &r)
	return r
}

func (s *shape) search(path []string, at int, r *search) {
	if r.seen[step{s, at}] {
		return // a choice of itself
	}
	r.seen[step{s, at}] = true
	for _, a := range s.alternatives() {
		switch {
		case len(a.choices) > 0: // a choice within a choice, as JSON Schema has
			a.search(path, at, r)
		case a.kind == nothing:
			r.null = true
		case at == len(path):
			r.found = append(r.found, a)
		case a.kind == record:
			if field := a.fields[path[at]]; field != nil {
				field.search(path, at+1, r)
			} else if a.open && len(a.fields) == 0 {
				r.open = true // of a record that lists fields, what it doesn't list isn't written
			}
		case a.kind == mapping:
			r.open = true
			a.elem.search(path, at+1, r)
		case a.kind == anything:
			r.open = true
		default:
			r.blocked, r.at = a.name, at
		}
	}
}
