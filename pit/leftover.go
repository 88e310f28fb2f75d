package pit

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// newTag makes the name of a build's tags, a UUID of version 7, which tells when the build began.
func newTag(now time.Time) string {
	id := uuid.New()
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16|0x7000|uint64(binary.BigEndian.Uint16(id[6:8])&0x0fff))
	return TagPrefix + id.String()
}

// tagTime is when the build of a tag began, the zero time where the tag doesn't tell.
func tagTime(tag string) time.Time {
	id, err := uuid.Parse(strings.TrimPrefix(tag, TagPrefix))
	if err != nil || id.Version() != 7 {
		return time.Time{}
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// noteFile stands in the folder of a build and says what the build leaves elsewhere if it is killed.
const noteFile = "build.json"

// buildNote is what stands in it.
type buildNote struct {
	Out      string   `json:"out"`
	Scratch  string   `json:"scratch"` // what the names of its parts begin with
	Card     string   `json:"card"`
	CardPart string   `json:"card_part"`
	Tables   []string `json:"tables"` // that are to be tagged
}

// note says what the build will leave if it is killed.
func (b *build) note() error {
	n := buildNote{Out: b.request.Out, Card: b.cardPath(), CardPart: b.cardPart()}
	if n.Out == feature.Standard {
		n.Out = ""
	} else {
		n.Scratch = scratchOf(n.Out, b.card.Tag)
	}
	if b.again == nil {
		for _, t := range b.tables() {
			n.Tables = append(n.Tables, t.Name())
		}
		if b.labelTable != nil && !slices.Contains(n.Tables, b.labelTable.Name()) {
			n.Tables = append(n.Tables, b.labelTable.Name())
		}
	}
	text, err := json.Marshal(n)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.temp, noteFile), text, 0o644)
	}
	if err != nil {
		return fmt.Errorf("note what the build makes: %w", err)
	}
	return nil
}

// Leftover is what stands of a build that was killed, or is still on its way: tags that keep snapshots from expiring though no
// card tells of them, and files.
type Leftover struct {
	Tag    string    `json:"tag"`
	Begun  time.Time `json:"begun"`            // the zero time where it isn't known
	Tables []string  `json:"tables,omitempty"` // that have the tag
	Files  []string  `json:"files,omitempty"`

	note   buildNote
	folder string // of the build, "" where it is gone
	kept   bool   // whether its card was kept before it was killed
}

// Leftovers are what builds have left, by their tags: those whose tags no card names, and those that have a folder below tempDir,
// that of the system if it is "".
func Leftovers(ctx context.Context, l *lake.Lake, tempDir string) ([]Leftover, error) {
	tagged, err := l.Tagged(ctx, TagPrefix)
	if err != nil {
		return nil, err
	}
	kept, err := keptTags(ctx, l)
	if err != nil {
		return nil, err
	}
	left := map[string]*Leftover{}
	for tag, tables := range tagged {
		if !kept[tag] {
			left[tag] = &Leftover{Tag: tag, Begun: tagTime(tag), Tables: tables}
		}
	}
	if tempDir == "" {
		tempDir = os.TempDir()
	}
	folders, err := filepath.Glob(filepath.Join(tempDir, TagPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("look for folders of builds: %w", err)
	}
	for _, folder := range folders {
		text, err := os.ReadFile(filepath.Join(folder, noteFile))
		if err != nil { // it was killed before it made anything, or has just ended
			continue
		}
		tag := filepath.Base(folder)
		o := left[tag]
		if o == nil {
			o = &Leftover{Tag: tag, Begun: tagTime(tag), kept: kept[tag]}
			left[tag] = o
		}
		o.folder = folder
		if err := json.Unmarshal(text, &o.note); err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(folder, noteFile), err)
		}
		if err := o.find(ctx, l); err != nil {
			return nil, err
		}
	}
	all := make([]Leftover, 0, len(left))
	for _, o := range left {
		all = append(all, *o)
	}
	slices.SortFunc(all, func(a, b Leftover) int { return strings.Compare(a.Tag, b.Tag) })
	return all, nil
}

// keptTags are the tags of the cards that the lake keeps.
func keptTags(ctx context.Context, l *lake.Lake) (map[string]bool, error) {
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	cards, err := l.Cards(ctx, db)
	if err != nil {
		return nil, err
	}
	kept := map[string]bool{}
	for _, k := range cards {
		c, err := ParseCard("of "+k.Out, []byte(k.Card))
		if err != nil {
			return nil, err
		}
		kept[c.Tag] = true
	}
	return kept, nil
}

// find looks for what the note of a build names: its files, and tags of tables outside the project.
func (o *Leftover) find(ctx context.Context, l *lake.Lake) error {
	for _, begin := range []string{o.note.Scratch, o.note.CardPart} {
		if begin == "" {
			continue
		}
		entries, err := os.ReadDir(filepath.Dir(begin))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for what build %s left: %w", o.Tag, err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), filepath.Base(begin)) {
				o.Files = append(o.Files, filepath.Join(filepath.Dir(begin), e.Name()))
			}
		}
	}
	for _, name := range o.note.Tables {
		if o.kept || slices.Contains(o.Tables, name) {
			continue
		}
		tags, err := l.Tags(ctx, name)
		if err != nil {
			return err
		}
		if slices.Contains(tags, o.Tag) {
			o.Tables = append(o.Tables, name)
		}
	}
	return nil
}

// LetGo removes what a build has left: its tags, and its files. What it had moved aside, and not replaced as a whole, it puts
// back. The build must have ended.
func (o *Leftover) LetGo(ctx context.Context, l *lake.Lake) error {
	if err := o.settle(); err != nil {
		return fmt.Errorf("put back what build %s had moved: %w", o.Tag, err)
	}
	for _, f := range o.Files {
		if err := os.RemoveAll(f); err != nil {
			return fmt.Errorf("remove what build %s left: %w", o.Tag, err)
		}
	}
	for _, name := range o.Tables {
		if _, err := l.Unpin(ctx, name, o.Tag); err != nil {
			return err
		}
	}
	if o.folder == "" {
		return nil
	}
	if err := os.RemoveAll(o.folder); err != nil {
		return fmt.Errorf("remove the folder of build %s: %w", o.Tag, err)
	}
	return nil
}

// settle makes training set and card fit each other. Where the lake has the card the build had all but ended, and the card's file
// goes to its place. Where it hasn't, what stood there before the build comes back, unless a later build has replaced it.
func (o *Leftover) settle() error {
	if o.kept {
		if slices.Contains(o.Files, o.note.CardPart) {
			return os.Rename(o.note.CardPart, o.note.Card)
		}
		return nil
	}
	old := o.note.Scratch + oldSuffix
	if !slices.Contains(o.Files, old) {
		return nil
	}
	if card, err := ReadCard(o.note.Card); err == nil && !o.Begun.IsZero() && card.CreatedAt.After(o.Begun) {
		if _, err := os.Stat(o.note.Out); err == nil {
			return nil
		}
	}
	if err := os.RemoveAll(o.note.Out); err != nil {
		return err
	}
	return os.Rename(old, o.note.Out)
}
