// Lesson 3: how do I answer now, and work later?
//
// The lecture says: run what takes long in the background, answer at once, keep the result
// somewhere, and let the client ask for it with GET:
//
//	@app.post("/task", status_code=202)
//	def create_task(task_input: TaskInput, background_tasks: BackgroundTasks):
//	    background_tasks.add_task(cpu_bound_task, task_input.id_, task_input.wait_time)
//	    return task_input.id_
//
// Go says: a goroutine is one word, but a server needs the rest of the sentence: how many at
// once, how many may wait, who sees the result, what happens at the end. That is a mutex around a
// map of jobs, a queue with a bound, and a fixed number of workers:
//
//	tasks := NewTasks(Config{Workers: 2, Queue: 100, Keep: 1000, Kinds: map[string]Kind{
//		"mail": {Run: sendMail},
//	}})
//	tasks.Start("")                             // no journal: in memory only
//	task, err := tasks.Submit("mail", input)    // at once; 202 and task.ID to the client
//	task, err = tasks.Get(task.ID)              // later: task.Status, task.Result
//
// This file needs nothing but the standard library: copy it and it works.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind is one kind of task.
type Kind struct {
	// Check refuses a bad input when it is submitted, or returns it with the defaults filled in.
	// nil takes any JSON.
	Check func(input json.RawMessage) (json.RawMessage, error)

	// Run does the work, and may say how far it is, from 0 to 1. Its ctx ends on Cancel, or when the
	// server stops; it should return soon after that.
	Run func(ctx context.Context, input json.RawMessage, progress func(float64)) (result any, err error)
}

// Config is what NewTasks needs. The three numbers must be at least 1.
type Config struct {
	Kinds   map[string]Kind
	Workers int // how many tasks run at once: tens, since Start gives each a processor of Go's
	Queue   int // how many may wait for a worker
	Keep    int // how many finished ones can still be fetched

	Error func(error) json.RawMessage // what a client may know of an error; nil: that there was one
	Log   *slog.Logger                // nil: slog.Default()
}

// Status is where a task is: queued, then running, then one of the other three for good. A
// queued task may be canceled too.
type Status string

const (
	Queued    Status = "queued"
	Running   Status = "running"
	Succeeded Status = "succeeded"
	Failed    Status = "failed"
	Canceled  Status = "canceled"
)

// Statuses lists every Status.
var Statuses = []Status{Queued, Running, Succeeded, Failed, Canceled}

// Finished reports whether the status is final.
func (s Status) Finished() bool { return s == Succeeded || s == Failed || s == Canceled }

// Task is a copy of what is known of a task. The bytes of its JSON fields are shared: read only.
type Task struct {
	ID         string          `json:"id"`
	Kind       string          `json:"kind"`
	Status     Status          `json:"status"`
	Progress   float64         `json:"progress"` // 0 to 1, never backwards
	Input      json.RawMessage `json:"input"`
	Result     json.RawMessage `json:"result,omitempty"` // of one that succeeded
	Error      json.RawMessage `json:"error,omitempty"`  // of one that failed or was canceled
	CreatedAt  time.Time       `json:"created_at"`
	StartedAt  time.Time       `json:"started_at,omitzero"`
	FinishedAt time.Time       `json:"finished_at,omitzero"`
}

// What Submit, Get, Wait and Cancel return, and what tasks are canceled or failed with.
var (
	ErrUnknownKind  = errors.New("no such kind of task")
	ErrQueueFull    = errors.New("the queue is full")
	ErrNotAccepting = errors.New("no tasks are accepted now")
	ErrNotFound     = errors.New("no such task")
	ErrGone         = errors.New("the task is no longer known")
	ErrFinished     = errors.New("the task has already finished")
	ErrCanceled     = errors.New("the task was canceled")
	ErrStopped      = errors.New("the server stopped before the task had finished")
	ErrCrashed      = errors.New("the server crashed three times in a row while the task ran")
)

// Tasks is the map of background jobs, and the workers that empty its queue.
type Tasks struct {
	config  Config
	run     string // the first half of the ids that this run of the program gives
	workers sync.WaitGroup

	mu        sync.Mutex // guards all below, and every job
	wake      sync.Cond  // a job was queued, or draining begun
	accepting bool
	draining  bool
	last      uint64 // the second half of the last id given
	jobs      map[string]*job
	all       list.List // of *job, newest first
	queue     list.List // of *job, oldest first
	finished  list.List // of *job, in the order they finished
	counts    map[Status]int
	journal   *os.File // nil: none
	broken    error    // why the journal can no longer be written
}

// job is a task and what only Tasks needs to know of it.
type job struct {
	Task
	inAll   *list.Element
	inQueue *list.Element
	cancel  context.CancelCauseFunc // while it runs
	done    chan struct{}           // closed when it has finished; nil if no one waits

	crashes    int    // how many times in a row the program crashed while it ran
	line       []byte // its last line in the journal, until replay has decoded it
	lineNumber int
}

// NewTasks returns an empty set of tasks. It accepts none before Start.
func NewTasks(c Config) *Tasks {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Error == nil {
		c.Error = func(error) json.RawMessage { return nil }
	}
	t := &Tasks{
		config: c,
		run:    strings.ToLower(rand.Text()[:8]),
		jobs:   map[string]*job{},
		counts: map[Status]int{},
	}
	t.wake.L = &t.mu
	return t
}

// Start replays the journal, a file's path, if it is not "", and starts the workers. Call it once,
// and nothing else while it runs.
func (t *Tasks) Start(journal string) error {
	if journal != "" {
		if err := t.openJournal(journal); err != nil {
			return err
		}
	}
	// Requests stay fast while tasks compute as long as one of Go's processors is not a worker's:
	// with none left, the scheduler looks at the network every 10 ms. On a machine with too few
	// CPUs the operating system shares them out, and it serves a thread that has waited first.
	// (Setting it ends Go's own updates of it, when the limit of a container changes.)
	if runtime.GOMAXPROCS(0) <= t.config.Workers {
		runtime.GOMAXPROCS(t.config.Workers + 1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accepting = true
	for range t.config.Workers {
		t.workers.Go(t.work)
	}
	return nil
}

// Submit queues a task and returns at once. The error is Check's, ErrUnknownKind, ErrQueueFull,
// or ErrNotAccepting: before Start, while draining, and when the journal can't be written.
func (t *Tasks) Submit(kind string, input json.RawMessage) (Task, error) {
	k, ok := t.config.Kinds[kind]
	if !ok {
		return Task{}, ErrUnknownKind
	}
	input, err := k.check(input)
	if err != nil {
		return Task{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.accepting {
		return Task{}, cmp.Or(t.broken, ErrNotAccepting)
	}
	if t.queue.Len() >= t.config.Queue {
		return Task{}, ErrQueueFull
	}
	j := &job{}
	err = t.change(j, Task{
		ID:        t.run + "-" + strconv.FormatUint(t.last+1, 10),
		Kind:      kind,
		Status:    Queued,
		Input:     input,
		CreatedAt: time.Now().UTC(),
	})
	if err != nil {
		return Task{}, err
	}
	t.last++
	t.jobs[j.ID] = j
	j.inAll = t.all.PushFront(j)
	j.inQueue = t.queue.PushBack(j)
	t.wake.Signal()
	return j.Task, nil
}

func (k Kind) check(input json.RawMessage) (json.RawMessage, error) {
	if k.Check != nil {
		return k.Check(input)
	}
	if len(input) == 0 {
		return json.RawMessage("null"), nil
	}
	return bytes.Clone(input), json.Unmarshal(input, new(json.RawMessage))
}

// Get returns a task. The error is ErrGone for one that was known once and is no longer, and
// ErrNotFound for an id that was never given.
func (t *Tasks) Get(id string) (Task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, err := t.find(id)
	if err != nil {
		return Task{}, err
	}
	return j.Task, nil
}

// Wait is Get, but first waits until the task has finished or ctx ends.
func (t *Tasks) Wait(ctx context.Context, id string) (Task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, err := t.find(id)
	if err != nil {
		return Task{}, err
	}
	if j.Status.Finished() {
		return j.Task, nil
	}
	if j.done == nil {
		j.done = make(chan struct{})
	}
	done := j.done
	t.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
	t.mu.Lock()
	return j.Task, nil
}

// List returns the newest tasks first, at most limit of them: of one status, or of all if it is "".
func (t *Tasks) List(status Status, limit int) []Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	tasks := []Task{}
	for e := t.all.Front(); e != nil && len(tasks) < limit; e = e.Next() {
		if j := e.Value.(*job); status == "" || status == j.Status {
			tasks = append(tasks, j.Task)
		}
	}
	return tasks
}

// Cancel ends a task: it is canceled from this moment, its context ends with ErrCanceled, and
// what it still returns is dropped. To cancel it again is no error. If it has succeeded or
// failed, the error is ErrFinished; else it is Get's, or the journal's.
func (t *Tasks) Cancel(id string) (Task, error) {
	problem := t.problem(ErrCanceled)
	t.mu.Lock()
	defer t.mu.Unlock()
	j, err := t.find(id)
	if err != nil {
		return Task{}, err
	}
	switch j.Status {
	case Canceled:
		return j.Task, nil
	case Succeeded, Failed:
		return j.Task, ErrFinished
	}
	if err := t.change(j, j.ended(Canceled, nil, problem)); err != nil {
		return Task{}, err
	}
	t.release(j, ErrCanceled)
	return j.Task, nil
}

// Counts returns how many tasks are in each status, the forgotten ones included.
func (t *Tasks) Counts() map[Status]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

// Ready reports whether tasks are accepted.
func (t *Tasks) Ready() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.accepting
}

// taskID is <run>-<number>, so that an id tells its own story: whether it was ever given can be
// seen without a list of all that were.
var taskID = regexp.MustCompile(`^([a-z2-7]{8})-([1-9][0-9]{0,17})$`)

// find returns a job, ErrGone or ErrNotFound. t.mu is held.
func (t *Tasks) find(id string) (*job, error) {
	if j := t.jobs[id]; j != nil {
		return j, nil
	}
	part := taskID.FindStringSubmatch(id)
	if part == nil {
		return nil, ErrNotFound
	}
	if n, _ := strconv.ParseUint(part[2], 10, 64); part[1] == t.run && n > t.last {
		return nil, ErrNotFound
	}
	return nil, ErrGone
}

// change is how a task gets another status: in the journal first, then for all to see. t.mu is
// held.
func (t *Tasks) change(j *job, to Task) error {
	if err := t.write(to, j.crashes); err != nil {
		return err
	}
	t.show(j, to)
	return nil
}

func (t *Tasks) show(j *job, to Task) {
	if j.Status != "" {
		t.counts[j.Status]--
	}
	t.counts[to.Status]++
	j.Task = to
}

// ended returns how the task will look when it has finished.
func (j *job) ended(status Status, result, problem json.RawMessage) Task {
	to := j.Task
	to.Status, to.Result, to.Error, to.FinishedAt = status, result, problem, time.Now().UTC()
	if status == Succeeded {
		to.Progress = 1
	}
	return to
}

// requeued returns how the task will look when it waits for its next run.
func (j *job) requeued() Task {
	to := j.Task
	to.Status, to.StartedAt, to.Progress = Queued, time.Time{}, 0
	return to
}

// release lets go of a job that has finished: its place in the queue or its worker, who waits for
// it, and the oldest of those that are kept. t.mu is held.
func (t *Tasks) release(j *job, cause error) {
	t.unqueue(j)
	if j.cancel != nil {
		j.cancel(cause)
	}
	if j.done != nil {
		close(j.done)
	}
	t.finished.PushBack(j)
	for t.finished.Len() > t.config.Keep {
		oldest := t.finished.Remove(t.finished.Front()).(*job)
		t.all.Remove(oldest.inAll)
		delete(t.jobs, oldest.ID)
	}
}

// unqueue takes a job out of the queue, if it is in it. t.mu is held.
func (t *Tasks) unqueue(j *job) {
	if j.inQueue != nil {
		t.queue.Remove(j.inQueue)
		j.inQueue = nil
	}
}

// work is a worker: it runs one task after the other.
func (t *Tasks) work() {
	for {
		j, ctx, err := t.next()
		if err != nil {
			t.config.Log.Error("no more tasks are started", "cause", err)
		}
		if j == nil {
			return
		}
		result, err := t.call(ctx, j)
		t.finish(j, result, err)
	}
}

// next waits for a task and marks it as running. It returns no job when none will come: while
// draining (a journal keeps the queue for the next start), and when the journal is broken.
func (t *Tasks) next() (*job, context.Context, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.queue.Len() == 0 && !t.draining {
		t.wake.Wait()
	}
	if t.queue.Len() == 0 || t.draining && t.journal != nil {
		return nil, nil, nil
	}
	j := t.queue.Front().Value.(*job)
	to := j.Task
	to.Status, to.StartedAt = Running, time.Now().UTC()
	if err := t.change(j, to); err != nil {
		return nil, nil, err
	}
	t.unqueue(j)
	// Not the request's context, nor that of the Start hook: a task outlives both.
	ctx, cancel := context.WithCancelCause(context.Background())
	j.cancel = cancel
	return j, ctx, nil
}

// call runs a task. A panic fails that task alone.
func (t *Tasks) call(ctx context.Context, j *job) (result json.RawMessage, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	t.mu.Lock()
	task := j.Task
	t.mu.Unlock()
	v, err := t.config.Kinds[task.Kind].Run(ctx, task.Input, func(p float64) { t.progress(j, p) })
	if err != nil {
		return nil, err
	}
	return encode(v)
}

// progress notes how far a task is.
func (t *Tasks) progress(j *job, p float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.Status == Running && p > j.Progress { // which NaN never is
		j.Progress = min(p, 1)
	}
}

// finish records what a task returned, unless it was canceled meanwhile. A journal that can't be
// written does not hold the result back: the next start will run the task again.
func (t *Tasks) finish(j *job, result json.RawMessage, err error) {
	status, problem := Succeeded, json.RawMessage(nil)
	if err != nil {
		status, problem = Failed, t.problem(err)
	}
	t.mu.Lock()
	if j.Status != Running {
		t.mu.Unlock()
		return
	}
	to := j.ended(status, result, problem)
	unwritten := t.write(to, j.crashes)
	t.show(j, to)
	t.release(j, nil)
	t.mu.Unlock()

	log := t.config.Log.With("id", to.ID, "kind", to.Kind, "duration", to.FinishedAt.Sub(to.StartedAt))
	if err != nil {
		log.Error("task failed", "cause", err)
	} else {
		log.Info("task succeeded")
	}
	if unwritten != nil {
		log.Error("the task's end is not in the journal: the next start will run it again", "cause", unwritten)
	}
}

// problem is what a client may know of err. Config.Error is not ours: if it panics, or returns what
// is no JSON, that must not end the program, or the journal.
func (t *Tasks) problem(err error) (problem json.RawMessage) {
	defer func() {
		if recover() != nil || !json.Valid(problem) {
			problem = json.RawMessage(`{"detail":"the task failed"}`)
		}
	}()
	return t.config.Error(err)
}

// encode is json.Marshal, but leaves <, > and & as they are.
func encode(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Drain refuses new tasks, and gives the accepted ones until ctx ends to finish. The queue is run to its end, unless
// a journal keeps it for the next start. What is cut off is named in the log: it is canceled with
// ErrStopped, or, with a journal, queued for the next start. The error says that a task did not
// return although its context has ended.
func (t *Tasks) Drain(ctx context.Context) error {
	t.mu.Lock()
	t.accepting, t.draining = false, true
	t.wake.Broadcast()
	t.mu.Unlock()

	idle := make(chan struct{})
	go func() {
		t.workers.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
	}
	t.cutOff()
	select {
	case <-idle:
		return nil
	case <-time.After(time.Second):
		return errors.New("a task goes on although its context has ended")
	}
}

// cutOff ends what is left when Drain's time is over, and leaves the queue to the journal.
func (t *Tasks) cutOff() {
	problem := t.problem(ErrStopped)
	var canceled, kept []string
	t.mu.Lock()
	for _, j := range t.unfinished() {
		if t.journal == nil {
			t.show(j, j.ended(Canceled, nil, problem))
			t.release(j, ErrStopped)
			canceled = append(canceled, j.ID)
			continue
		}
		kept = append(kept, j.ID)
		if j.Status == Running || j.crashes > 0 {
			_ = t.write(j.requeued(), 0) // no crash: counted anew. A broken journal was reported
			t.show(j, j.requeued())
		}
		if j.cancel != nil {
			j.cancel(ErrStopped)
		}
	}
	t.mu.Unlock()
	if len(canceled) > 0 {
		t.config.Log.Warn("tasks were canceled by the stop", "ids", canceled)
	}
	if len(kept) > 0 {
		t.config.Log.Info("tasks are left in the journal for the next start", "ids", kept)
	}
}

// unfinished returns the jobs that are queued or running, oldest first. t.mu is held.
func (t *Tasks) unfinished() (jobs []*job) {
	for e := t.all.Back(); e != nil; e = e.Prev() {
		if j := e.Value.(*job); !j.Status.Finished() {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// Close stops at once what Drain was not called for, and closes the journal.
func (t *Tasks) Close() error {
	t.mu.Lock()
	drained := t.draining
	t.mu.Unlock()
	var err error
	if !drained {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		err = t.Drain(now)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.journal != nil {
		err = errors.Join(err, t.broken, t.journal.Sync(), t.journal.Close())
	}
	return err
}

// The journal: a write-ahead log. Every change of a task is a line of JSON, the task as it is from
// then on, written before anyone is told; Start reads the lines, and the last one of a task wins.
//
// What it promises: a task that was acknowledged is not lost when the program is killed. One that
// had not finished runs again, so at least once is what a task runs. What it does not: to survive
// a power loss (nothing is synced before Close), or two programs on one file; nor to stay small
// while the program runs: only Start compacts it.
//
// Its answer to trouble is to stop, not to repair. A line that can't be read stops the start; a
// line that can't be written stops the acceptance of tasks.

// maxCrashes is how many times in a row a task may be running when the program crashes. After
// that the task is taken for the cause.
const maxCrashes = 3

// record is a line of the journal.
type record struct {
	Task
	Crashes int `json:"crashes,omitzero"`
}

func (t *Tasks) line(to Task, crashes int) ([]byte, error) {
	line, err := encode(record{to, crashes})
	if err == nil && !json.Valid(line) {
		err = errors.New("it is nested too deeply to be read back")
	}
	return append(line, '\n'), err
}

// write appends a line. The first one that fails is the last: another would stand behind half a
// line. All that was acknowledged is before it, and the next start finds it.
func (t *Tasks) write(to Task, crashes int) error {
	if t.journal == nil {
		return nil
	}
	if t.broken != nil {
		return t.broken
	}
	line, err := t.line(to, crashes)
	if err != nil {
		return err // nothing was written: the journal is whole
	}
	if _, err := t.journal.Write(line); err != nil {
		t.accepting = false
		t.broken = fmt.Errorf("%w: %w", ErrNotAccepting, err)
	}
	return t.broken
}

// openJournal replays the file and puts a new one in its place, with what is kept. An error
// leaves the file as it was.
func (t *Tasks) openJournal(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // it holds what clients sent
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	defer f.Close()
	if path, err = filepath.EvalSymlinks(path); err != nil { // or the new file would replace a link
		return fmt.Errorf("open the journal: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("the journal %s is not a regular file", path))
	}
	if err := t.replay(f); err != nil {
		return err
	}
	if err := t.requeue(path); err != nil {
		return err
	}
	compact := path + ".new"
	err = t.compact(compact)
	if err == nil {
		err = errors.Join(f.Close(), os.Rename(compact, path)) // closed first: Windows needs it
	}
	if err == nil {
		t.journal, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	}
	if err != nil {
		os.Remove(compact) // it may not even be there
		return fmt.Errorf("compact the journal: %w", err)
	}
	return nil
}

// lineBegin is how every line of a journal begins.
const lineBegin = `{"id":"`

// replay reads the file, line by line, and keeps what retention keeps.
func (t *Tasks) replay(f *os.File) error {
	r := bufio.NewReader(f) // not a bufio.Scanner: it ends at a line of 64 KiB, silently
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if n == 1 && !beginsJournal(string(line)) {
			return fmt.Errorf("%s:1: this is not a journal: name another file", f.Name())
		}
		if err == io.EOF {
			if len(line) > 0 { // a write that the end of the program cut off: never acknowledged
				t.config.Log.Warn("dropped half a line at the journal's end", "file", f.Name(), "line", n, "bytes", len(line))
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		if err := t.restore(line, n); err != nil {
			return damaged(f.Name(), n, err)
		}
	}
}

// beginsJournal reports whether a file's first line, or half of it, may be a journal's. A file that
// was named by mistake must not be taken for half a line, and dropped.
func beginsJournal(line string) bool {
	if len(line) < len(lineBegin) {
		return strings.HasPrefix(lineBegin, line)
	}
	id, _, whole := strings.Cut(strings.TrimPrefix(line, lineBegin), `"`)
	return strings.HasPrefix(line, lineBegin) && (!whole || taskID.MatchString(id))
}

func damaged(path string, line int, err error) error {
	return fmt.Errorf("%s:%d: %w: mend or remove the line, or start with another journal", path, line, err)
}

// restore takes a line for what its task is now. Most lines are of tasks that went on, or that will
// be forgotten, so it reads no more than how each line begins: {"id":"…","kind":"…","status":"…".
func (t *Tasks) restore(line []byte, n int) error {
	id, rest, _ := strings.Cut(strings.TrimPrefix(string(line), lineBegin), `","kind":"`)
	_, rest, _ = strings.Cut(rest, `","status":"`)
	status, _, _ := strings.Cut(rest, `"`)
	if !slices.Contains(Statuses, Status(status)) || !json.Valid(line) {
		return errors.New("this is not a task")
	}
	j := t.jobs[id]
	if j == nil {
		if !taskID.MatchString(id) {
			return errors.New("this is not a task")
		}
		j = &job{Task: Task{ID: strings.Clone(id)}} // or it would hold the whole line in memory
		t.jobs[j.ID] = j
		j.inAll = t.all.PushFront(j)
	} else if j.Status.Finished() {
		return fmt.Errorf("the task %s had already finished", j.ID)
	}
	j.Status, j.line, j.lineNumber = Status(status), line, n
	if j.Status.Finished() {
		t.release(j, nil)
	}
	return nil
}

// requeue decodes the tasks that replay has kept, and queues those that had not finished.
func (t *Tasks) requeue(path string) error {
	for e := t.all.Back(); e != nil; e = e.Prev() {
		j := e.Value.(*job)
		var rec record
		dec := json.NewDecoder(bytes.NewReader(j.line))
		dec.DisallowUnknownFields() // a damaged name would lose its value
		if err := dec.Decode(&rec); err != nil {
			return damaged(path, j.lineNumber, err)
		}
		if rec.ID != j.ID || rec.Status != j.Status { // said twice, and not the same
			return damaged(path, j.lineNumber, errors.New("this is not a task"))
		}
		j.Task, j.crashes, j.line = rec.Task, rec.Crashes, nil
		if j.Status == Running {
			j.crashes++ // or there would be another line
		}
	}
	// List wants them in the order they were created, not in the file's.
	jobs := slices.SortedFunc(maps.Values(t.jobs), func(a, b *job) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), len(a.ID)-len(b.ID), strings.Compare(a.ID, b.ID))
	})
	t.all.Init()
	for _, j := range jobs {
		j.inAll = t.all.PushFront(j)
		t.counts[j.Status]++
	}
	for _, j := range t.unfinished() {
		kind, ok := t.config.Kinds[j.Kind]
		if !ok {
			return damaged(path, j.lineNumber, fmt.Errorf("%w: %q", ErrUnknownKind, j.Kind))
		}
		if _, err := kind.check(j.Input); err != nil {
			return damaged(path, j.lineNumber, err)
		}
		if j.crashes >= maxCrashes {
			t.config.Log.Error("task failed", "id", j.ID, "kind", j.Kind, "cause", ErrCrashed)
			t.show(j, j.ended(Failed, nil, t.problem(ErrCrashed)))
			t.release(j, nil)
			continue
		}
		t.show(j, j.requeued())
		j.inQueue = t.queue.PushBack(j)
	}
	return nil
}

// compact writes what is kept to a new file: the finished tasks in the order they finished, which
// is the order they will be forgotten in, and then the others.
func (t *Tasks) compact(path string) error {
	os.Remove(path) // left over from a start that was killed; what can't be removed is an error next
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	var jobs []*job
	for e := t.finished.Front(); e != nil; e = e.Next() {
		jobs = append(jobs, e.Value.(*job))
	}
	w := bufio.NewWriter(f) // its first error is Flush's too
	for _, j := range append(jobs, t.unfinished()...) {
		line, e := t.line(j.Task, j.crashes)
		err = cmp.Or(err, e)
		w.Write(line)
	}
	return errors.Join(err, w.Flush(), f.Sync(), f.Close())
}
