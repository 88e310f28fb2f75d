package serve

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/pit"
)

// Datasets builds training sets, and knows the cards of those that were built.
type Datasets struct {
	// Request makes a request of parameters. An error says which is wrong.
	Request func(p *feature.Project, parameters url.Values) (*feature.DatasetRequest, error)
	// Build builds a training set of labels, an Arrow IPC stream of so many bytes at most, and writes it as such a stream. The card is kept.
	Build func(ctx context.Context, request *feature.DatasetRequest, labels io.Reader, bytesMax int64, out io.Writer) (*pit.Card, error)
	// Cards are those of all training sets, the newest first.
	Cards func(ctx context.Context) ([]*pit.Card, error)
	// Unpin lets the snapshots that a training set was made from expire.
	Unpin func(ctx context.Context, card *pit.Card) error
	// TempDir is where labels and training sets stand meanwhile; "" is the system's.
	TempDir string
}

// Codes of errors of training sets. They are frozen.
const (
	codeDataset    = "bad_dataset_request"
	codeIncomplete = "labels_after_watermark"
	codeBusy       = "builds_are_waiting"
	codeNoDataset  = "unknown_dataset"
)

// Bounds of builds: one works, and so many wait for it with their labels.
const buildsWaiting = 4

// Headers that tell of a training set beside it.
const (
	datasetHeader = "Loam-Dataset"      // its id, by which its card is found
	rowsHeader    = "Loam-Dataset-Rows" // how many rows it has
)

// builds admits builds.
type builds struct {
	places chan struct{} // of builds that work or wait
	work   chan struct{}
}

func newBuilds() builds { return builds{make(chan struct{}, 1+buildsWaiting), make(chan struct{}, 1)} }

// buildDataset answers labels with their training set.
func (s *Server) buildDataset(w http.ResponseWriter, r *http.Request, c *caller) (failed error) {
	if s.Datasets == nil {
		return notOffered("requests for training sets")
	}
	if given := r.Header.Get("Content-Type"); given != arrowType {
		if media, _, err := mime.ParseMediaType(given); err != nil || media != arrowType {
			return &Error{Status: http.StatusUnsupportedMediaType, Code: codeMedia, Offset: -1,
				Message: fmt.Sprintf("the labels are %q", given), Remedy: "send an Arrow IPC stream, with the header Content-Type: " + arrowType}
		}
	}
	request, err := s.Datasets.Request(s.Project, r.URL.Query())
	if err != nil {
		if _, seen := s.Datasets.Request(c.sees(s.Project), r.URL.Query()); seen != nil { // which names no view that the caller may not read
			err = seen
		}
		return wrong(codeDataset, "", "mend the parameters; docs/serve.md has them", "%s", err)
	}
	if err := c.mayBuild(request); err != nil {
		return err
	}
	select {
	case s.builds.places <- struct{}{}:
		defer func() { <-s.builds.places }()
	default:
		return &Error{Status: http.StatusTooManyRequests, Code: codeBusy, Offset: -1, RetryAfter: 5,
			Message: fmt.Sprintf("a training set is being built, and %d wait", buildsWaiting), Remedy: "try again later"}
	}
	connection := http.NewResponseController(w)
	now := time.Now()
	// The server's own times are for answers that come at once. One to read that passes while a build works would end it.
	if err := errors.Join(connection.SetReadDeadline(now.Add(s.Limits.Transfer)), connection.SetWriteDeadline(time.Time{})); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("set the times of a build: %w", err)
	}
	defer func() {
		if failed != nil {
			_ = connection.SetWriteDeadline(time.Now().Add(s.Limits.Write)) // where it fails the connection is gone
		}
	}()
	labels, err := s.spool("labels")
	if err != nil {
		return err
	}
	defer labels.remove()
	if err := s.receive(w, r, labels); err != nil {
		return err
	}
	if err := connection.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("set the times of a build: %w", err)
	}
	out, err := s.spool("dataset")
	if err != nil {
		return err
	}
	defer out.remove()
	card, err := s.build(r.Context(), request, labels, out)
	if err != nil {
		return err
	}
	if err := s.send(w, out, card); err != nil { // nobody has it
		return errors.Join(err, s.Datasets.Unpin(context.WithoutCancel(r.Context()), card))
	}
	return nil
}

// spooled is a file that goes with the request.
type spooled struct{ *os.File }

func (s *Server) spool(what string) (spooled, error) {
	if err := os.MkdirAll(cmp.Or(s.Datasets.TempDir, os.TempDir()), 0o755); err != nil {
		return spooled{}, fmt.Errorf("make a folder for what is spooled: %w", err)
	}
	f, err := os.CreateTemp(s.Datasets.TempDir, "serve-"+what+"-")
	if err != nil {
		return spooled{}, fmt.Errorf("make a file for %s: %w", what, err)
	}
	return spooled{f}, os.Remove(f.Name()) // it stays as long as it is open, and no longer than the process
}

func (f spooled) remove() { _ = f.Close() }

// receive takes the labels of a request, whoever is building meanwhile.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, to spooled) error {
	if _, err := io.Copy(to, http.MaxBytesReader(plainWriter(w), r.Body, s.Limits.LabelBytes)); err != nil {
		var tooLong *http.MaxBytesError
		switch {
		case errors.As(err, &tooLong):
			return &Error{Status: http.StatusRequestEntityTooLarge, Code: codeTooLarge, Offset: -1,
				Message: fmt.Sprintf("the labels have more than the %d bytes that are taken", tooLong.Limit), Remedy: "send fewer at once, or raise serve.labels in loam.yaml"}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return &Error{Status: http.StatusRequestTimeout, Code: codeSlow, Offset: -1,
				Message: fmt.Sprintf("the labels did not come within %s", s.Limits.Transfer), Remedy: "send them at once"}
		}
		return fmt.Errorf("receive labels: %w", err)
	}
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("receive labels: %w", err)
	}
	return nil
}

// build builds a training set once it is its turn.
func (s *Server) build(ctx context.Context, request *feature.DatasetRequest, labels, out spooled) (*pit.Card, error) {
	select {
	case s.builds.work <- struct{}{}:
		defer func() { <-s.builds.work }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	buffered := bufio.NewWriterSize(out, 1<<20)
	card, err := s.Datasets.Build(ctx, request, labels, s.Limits.LabelBytes, buffered)
	if err == nil {
		if err = buffered.Flush(); err != nil {
			err = errors.Join(fmt.Errorf("keep the training set until it is sent: %w", err), s.Datasets.Unpin(context.WithoutCancel(ctx), card))
		}
	}
	switch {
	case err == nil:
		return card, nil
	case ctx.Err() != nil: // whoever asked has gone
		return nil, ctx.Err()
	case errors.Is(err, pit.ErrIncomplete):
		e := wrong(codeIncomplete, "", "leave those labels out, or ask without require_complete", "%s", err)
		e.Status = http.StatusUnprocessableEntity
		return nil, e
	case errors.Is(err, pit.ErrRequest):
		if e := (*Error)(nil); errors.As(arrowError(err, "labels", s.Limits.LabelBytes), &e) && e.Status == http.StatusRequestEntityTooLarge {
			return nil, e
		}
		e := wrong(codeDataset, "", "mend the request or the labels", "%s", err)
		e.Status = http.StatusUnprocessableEntity
		return nil, e
	}
	return nil, err
}

// send answers with a training set.
func (s *Server) send(w http.ResponseWriter, out spooled, card *pit.Card) error {
	size, err := out.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("send the training set: %w", err)
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.Limits.Transfer)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("set the time for a training set: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", arrowType)
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	h.Set(datasetHeader, card.Tag)
	h.Set(rowsHeader, strconv.FormatInt(card.Rows, 10))
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, out); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// errGone: whoever asked has gone while it was answered.
var errGone = errors.New("send the training set to who asked for it")

// dataset is a training set in a list.
type dataset struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Rows      int64     `json:"rows"`
	Features  []string  `json:"features"`
	AsOf      string    `json:"as_of"`
}

// listDatasets answers with the training sets that the caller may know of.
func (s *Server) listDatasets(w http.ResponseWriter, r *http.Request, c *caller) error {
	cards, err := s.cards(r, c)
	if err != nil {
		return err
	}
	list := []dataset{}
	for _, card := range cards {
		list = append(list, dataset{card.Tag, card.Name, card.CreatedAt, card.Rows, card.Request.Features, card.Request.AsOf})
	}
	return writeAny(w, map[string]any{"datasets": list})
}

// showDataset answers with a training set's card.
func (s *Server) showDataset(w http.ResponseWriter, r *http.Request, c *caller) error {
	card, err := s.cardOf(r, c)
	if err != nil {
		return err
	}
	return writeAny(w, card)
}

// unpinDataset lets the snapshots of a training set expire. Its card stays.
func (s *Server) unpinDataset(w http.ResponseWriter, r *http.Request, c *caller) error {
	card, err := s.cardOf(r, c)
	if err != nil {
		return err
	}
	if err := c.mayUnpin(); err != nil {
		return err
	}
	if err := s.Datasets.Unpin(r.Context(), card); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func writeAny(w http.ResponseWriter, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	writeJSON(w, http.StatusOK, append(text, '\n'))
	return nil
}

// cards are those that the caller may see: of training sets of views that it may read.
func (s *Server) cards(r *http.Request, c *caller) ([]*pit.Card, error) {
	if s.Datasets == nil {
		return nil, notOffered("requests for training sets")
	}
	cards, err := s.Datasets.Cards(r.Context())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(cards, func(card *pit.Card) bool {
		var views []string
		for _, f := range card.Request.Features {
			view, _, _ := strings.Cut(f, ":")
			views = append(views, view)
		}
		return c.mayRead(views) != nil || len(card.Labels.Outcomes) > 0 && c.mayReadAll() != nil
	}), nil
}

func (s *Server) cardOf(r *http.Request, c *caller) (*pit.Card, error) {
	cards, err := s.cards(r, c)
	if err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	for _, card := range cards {
		if card.Tag == id {
			return card, nil
		}
	}
	return nil, &Error{Status: http.StatusNotFound, Code: codeNoDataset, Offset: -1,
		Message: fmt.Sprintf("there is no training set %q", id), Remedy: "GET /v1/datasets lists those that there are"}
}

// mayBuild refuses training sets of what the caller may not read. Outcomes are conditions on the columns of any stream.
func (c *caller) mayBuild(request *feature.DatasetRequest) error {
	var views []string
	for _, f := range request.Features {
		views = append(views, f.View)
	}
	if err := c.mayRead(views); err != nil || len(request.Outcomes) == 0 {
		return err
	}
	return c.mayReadAll()
}
