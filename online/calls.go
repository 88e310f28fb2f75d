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

// calls are calls of one script, each on one key, which go out in one pipeline. Several of a key are not in one.
type calls struct {
	script *script
	keys   []string
	spans  [][2]int // by call: its arguments in args, the script left out
	args   []any
	given  []any // by call: what the script gave
}

func newCalls(script *script, most, arguments int) *calls {
	return &calls{script: script, keys: make([]string, 0, most), spans: make([][2]int, 0, most), args: make([]any, 0, arguments)}
}

// add adds a call; arguments appends what follows its key.
func (c *calls) add(key string, arguments func(args []any) []any) {
	from := len(c.args)
	c.keys = append(c.keys, key)
	c.args = arguments(append(c.args, nil, nil, 1, key)) // how the script is named is set when it is sent
	c.spans = append(c.spans, [2]int{from, len(c.args)})
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
	pending := make([]int, len(c.keys)) // calls to send
	for i := range pending {
		pending[i] = i
	}
	c.given = make([]any, len(c.keys))
	var foreign []string
	name, what := "evalsha", c.script.hash
	for try := 0; len(pending) > 0; try++ {
		if try == scriptTries {
			return fmt.Errorf("send a script: the server forgot it %d times", scriptTries)
		}
		commands := make([]*redis.Cmd, len(pending))
		pipe := s.redis.Pipeline()
		for at, i := range pending {
			args := c.args[c.spans[i][0]:c.spans[i][1]:c.spans[i][1]]
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
				foreign = append(foreign, c.keys[i])
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
