package online

import (
	"context"
	"crypto/sha1" // is how Redis names scripts
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// script is a Lua script, which is sent by its hash.
type script struct{ text, hash string }

func newScript(text string) *script {
	sum := sha1.Sum([]byte(text))
	return &script{text, hex.EncodeToString(sum[:])}
}

// calls are calls of one script, which go out in one pipeline. Several of a key are not in one.
type calls struct {
	script *script
	keys   []string // of all calls
	spans  []span   // by call
	args   []any
	given  []any // by call: what the script gave
}

// span is where a call stands: its arguments in args, the script included, and its keys.
type span struct{ args, argsEnd, keys, keysEnd int }

func newCalls(script *script, most, arguments int) *calls {
	return &calls{script: script, keys: make([]string, 0, most), spans: make([]span, 0, most), args: make([]any, 0, arguments)}
}

// add adds a call of one key; arguments appends what follows it.
func (c *calls) add(key string, arguments func(args []any) []any) {
	c.begin(1)
	c.key(key)
	c.args = arguments(c.args)
	c.end()
}

// begin begins a call of some keys, each of which is added by key before what follows them is appended to args, and end ends it.
func (c *calls) begin(keys int) {
	c.spans = append(c.spans, span{args: len(c.args), keys: len(c.keys)})
	c.args = append(c.args, nil, nil, keys) // how the script is named is set when it is sent
}

func (c *calls) key(key string) {
	c.keys = append(c.keys, key)
	c.args = append(c.args, key)
}

func (c *calls) end() {
	last := &c.spans[len(c.spans)-1]
	last.argsEnd, last.keysEnd = len(c.args), len(c.keys)
}

// ForeignKeysError says that keys of a view hold what is not loam's. They are left as they are, for what was lost with the hash
// that stood there can't be known here, and a late change would pass for the last one; every other write was made.
type ForeignKeysError struct{ Keys []string }

func (e *ForeignKeysError) Error() string {
	return fmt.Sprintf("%d keys hold another type than loam writes, %s among them", len(e.Keys), e.Keys[0])
}

// scriptTries bounds how often the calls of a pipeline are sent where the server forgets scripts meanwhile.
const scriptTries = 3

// make makes the calls. A server that lacks the script, because it restarted, was told to forget it, or has just been given
// a slot, is sent it whole by those calls that it refused. It is [ForeignKeysError] where keys were left out.
func (s *Store) make(ctx context.Context, c *calls) error {
	pending := make([]int, len(c.spans)) // calls to send
	for i := range pending {
		pending[i] = i
	}
	c.given = make([]any, len(c.spans))
	var foreign []string
	name, what := "evalsha", c.script.hash
	for try := 0; len(pending) > 0; try++ {
		if try == scriptTries {
			return fmt.Errorf("send a script: the server forgot it %d times", scriptTries)
		}
		commands := make([]*redis.Cmd, len(pending))
		pipe := s.redis.Pipeline()
		for at, i := range pending {
			args := c.args[c.spans[i].args:c.spans[i].argsEnd:c.spans[i].argsEnd]
			args[0], args[1] = name, what
			commands[at] = redis.NewCmd(ctx, args...)
			_ = pipe.Process(ctx, commands[at]) // queues it
		}
		_, _ = pipe.Exec(ctx) // the error is that of a command
		var missing []int
		for at, i := range pending {
			switch err := commands[at].Err(); {
			case err == nil:
				c.given[i] = commands[at].Val()
			case strings.Contains(err.Error(), "NOSCRIPT"):
				missing = append(missing, i)
			case strings.Contains(err.Error(), "WRONGTYPE"): // a script's error may begin with something else
				foreign = append(foreign, c.keys[c.spans[i].keys:c.spans[i].keysEnd]...)
			default:
				return err
			}
		}
		pending, name, what = missing, "eval", c.script.text
	}
	if len(foreign) > 0 {
		return &ForeignKeysError{foreign}
	}
	return nil
}
