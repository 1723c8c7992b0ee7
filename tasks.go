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
//	tasks := NewTasks(Config{Kinds: map[string]Kind{"mail": {Run: sendMail}}})
//	if err := tasks.Start(""); err != nil { // "": no journal, in memory only
//		log.Fatal(err)
//	}
//	defer tasks.Stop(context.Background())
//
//	task, err := tasks.Submit("mail", input) // at once: answer 202, and task.ID
//	task, err = tasks.Get(task.ID)           // later: task.Status, task.Result
//
// The queue is a slice under the mutex, with a sync.Cond to wake the workers, and not a channel:
// a task that waits can be canceled, counted and listed, while a channel can only be received from.
//
// This file imports the standard library alone. To use it elsewhere, copy it and write your own
// package clause; it needs Go 1.25.

package main

import (
	"bufio"
	"bytes"
	"cmp"
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

// Run does the work of a task, and may say how far it is, from 0 to 1. Its ctx ends when the task
// is canceled or Stop's time is over; it should return soon after that.
type Run func(ctx context.Context, input json.RawMessage, progress func(float64)) (result any, err error)

// Kind is one kind of task.
type Kind struct {
	// Check refuses a bad input when it is submitted, or returns it with the defaults filled in.
	// nil takes any JSON.
	Check func(input json.RawMessage) (json.RawMessage, error)
	Run   Run
}

// Config is what NewTasks needs.
type Config struct {
	Kinds   map[string]Kind
	Workers int // how many tasks run at once; 0: one less than GOMAXPROCS, at least one
	Queue   int // how many may wait for a worker; 0: 1000
	Keep    int // how many finished ones can still be fetched; 0: 1000

	Error func(error) json.RawMessage // what a client may know of an error; nil: that there was one
	Log   *slog.Logger                // nil: slog.Default()
}

// Status is where a task is: queued, then running, then one of the other three for good. A queued
// task may be canceled too; and with a journal a stop or a crash makes a running one queued again.
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
// Attempt is how often it was started since it was submitted, or since the last orderly stop.
type Task struct {
	ID         string          `json:"id"`
	Kind       string          `json:"kind"`
	Status     Status          `json:"status"`
	Attempt    int             `json:"attempt"`
	Progress   float64         `json:"progress"` // 0 to 1, never backwards while it runs
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
	ErrCrashed      = errors.New("the server crashed three times while the task ran")
	ErrKindGone     = errors.New("the server no longer has this kind of task")
)

// Tasks is the map of background jobs, and the workers that empty its queue.
type Tasks struct {
	config  Config
	runID   string   // the first half of the ids that this run of the program gives
	journal *os.File // set by Start; nil: none
	workers sync.WaitGroup
	report  sync.Once // of a broken journal to the log

	mu        sync.Mutex // guards all below, and every job
	wake      sync.Cond  // there is something new for a worker: a task, the stop, a broken journal
	accepting bool
	stopping  bool   // Stop was called
	last      uint64 // the second half of the last id given
	jobs      map[string]*job
	created   []string // ids, in the order of creation; up to half of them may be forgotten
	queue     []string // ids of the queued, in that order
	finished  []string // ids of the finished that are kept, in the order they finished
	counts    map[Status]int
	broken    error // why the journal can no longer be written
}

// job is a task with its context, which ends when the task does, or earlier by Cancel or Stop. Run
// gets it, and Wait waits for its end.
type job struct {
	Task
	ctx context.Context
	end context.CancelCauseFunc
}

// NewTasks returns an empty set of tasks. It accepts none before Start. It panics on a Config with
// a negative number.
func NewTasks(c Config) *Tasks {
	if c.Workers < 0 || c.Queue < 0 || c.Keep < 0 {
		panic(fmt.Sprintf("tasks: a negative number: %d workers, a queue of %d, %d kept", c.Workers, c.Queue, c.Keep))
	}
	// One of Go's processors, if there are two, stays free for the requests: with none left, the
	// scheduler looks at the network every 10 ms.
	c.Workers = cmp.Or(c.Workers, max(1, runtime.GOMAXPROCS(0)-1))
	c.Queue = cmp.Or(c.Queue, 1000)
	c.Keep = cmp.Or(c.Keep, 1000)
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Error == nil {
		c.Error = func(error) json.RawMessage { return nil } // which becomes what problem says
	}
	t := &Tasks{config: c, runID: strings.ToLower(rand.Text()[:8]), jobs: map[string]*job{}, counts: map[Status]int{}}
	t.wake.L = &t.mu
	return t
}

// Start reads the journal, a file's path, if it is not "", and starts the workers. Call it once,
// and nothing else while it runs.
func (t *Tasks) Start(journal string) error {
	if journal != "" {
		if err := t.openJournal(journal); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accepting = true
	for range t.config.Workers {
		t.workers.Go(t.work)
	}
	return nil
}

// Submit queues a task and returns at once. The error is ErrUnknownKind, ErrQueueFull, Check's, or
// that the input is no JSON; or ErrNotAccepting: before Start, after Stop was called, and when the
// journal can't be written.
func (t *Tasks) Submit(kind string, input json.RawMessage) (Task, error) {
	k, ok := t.config.Kinds[kind]
	if !ok {
		return Task{}, ErrUnknownKind
	}
	var err error
	if k.Check != nil {
		input, err = k.Check(input)
	} else {
		input = json.RawMessage(cmp.Or(string(input), "null")) // a copy
		err = json.Unmarshal(input, new(json.RawMessage))
	}
	if err != nil {
		return Task{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.accepting {
		return Task{}, cmp.Or(t.broken, ErrNotAccepting)
	}
	if len(t.queue) >= t.config.Queue {
		return Task{}, ErrQueueFull
	}
	id := t.runID + "-" + strconv.FormatUint(t.last+1, 10)
	task := Task{ID: id, Kind: kind, Status: Queued, Input: input, CreatedAt: time.Now().UTC()}
	if err := t.write(task); err != nil {
		return Task{}, err
	}
	t.set(task)
	t.last++
	t.queue = append(t.queue, task.ID)
	t.wake.Signal()
	return task, nil
}

// set stores what a task is from now on, and forgets the oldest of too many that have finished. The
// journal comes first: see write. t.mu is held, or Start has not returned yet.
func (t *Tasks) set(to Task) {
	j := t.jobs[to.ID]
	if j == nil {
		// Not the request's context, nor that of the Start hook: a task outlives both.
		ctx, end := context.WithCancelCause(context.Background())
		j = &job{ctx: ctx, end: end}
		t.jobs[to.ID] = j
		t.created = append(t.created, to.ID)
	} else {
		t.counts[j.Status]--
	}
	j.Task = to
	t.counts[to.Status]++
	if !to.Status.Finished() {
		return
	}
	j.end(nil) // a cause that it has been given already stays
	t.finished = append(t.finished, to.ID)
	for len(t.finished) > t.config.Keep { // the oldest is forgotten
		delete(t.jobs, t.finished[0])
		t.finished = t.finished[1:]
	}
	if len(t.created) > 2*len(t.jobs) {
		t.created = slices.DeleteFunc(t.created, func(id string) bool { return t.jobs[id] == nil })
	}
}

// work is a worker: it runs one task, and leaves the next to another goroutine, since Run may have
// ended this one with runtime.Goexit.
func (t *Tasks) work() {
	j, task, err := t.next()
	if err != nil {
		if err != ErrStopped {
			t.report.Do(func() { t.config.Log.Error("no task is accepted or started any more", "cause", err) })
		}
		return
	}
	defer t.workers.Go(t.work)

	var result json.RawMessage
	err = errors.New("the task ended its goroutine")
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		t.finish(j, result, err)
	}()
	result, err = t.run(j, task)
}

// next waits for a task and marks it as running. The error says that there will be none: the queue
// is empty, and Stop was called or the journal is broken.
func (t *Tasks) next() (*job, Task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.queue) == 0 {
		if t.stopping || t.broken != nil {
			return nil, Task{}, cmp.Or(t.broken, ErrStopped)
		}
		t.wake.Wait()
	}
	j := t.jobs[t.queue[0]]
	task := j.Task
	task.Status, task.Attempt, task.StartedAt = Running, task.Attempt+1, time.Now().UTC()
	if err := t.write(task); err != nil {
		return nil, Task{}, err
	}
	t.set(task)
	t.queue = t.queue[1:]
	return j, task, nil
}

// run calls the Run of the task's kind. task is a copy, since Cancel may change j's meanwhile.
func (t *Tasks) run(j *job, task Task) (json.RawMessage, error) {
	kind, ok := t.config.Kinds[task.Kind]
	if !ok {
		return nil, ErrKindGone // it comes from a journal
	}
	result, err := kind.Run(j.ctx, task.Input, func(p float64) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if j.Status == Running && p > j.Progress { // which NaN never is
			j.Progress = min(p, 1)
		}
	})
	if err != nil {
		return nil, err
	}
	return encode(result)
}

// finish records what a task returned, unless it was canceled meanwhile. A result that can't be
// written to the journal is shown all the same, and the next start runs the task again.
func (t *Tasks) finish(j *job, result json.RawMessage, err error) {
	status, problem := Succeeded, json.RawMessage(nil)
	if err != nil {
		status, result, problem = Failed, nil, t.problem(err)
	}
	t.mu.Lock()
	if j.Status != Running {
		t.mu.Unlock()
		return
	}
	to := j.ended(status, result, problem)
	unwritten := t.write(to)
	t.set(to)
	t.mu.Unlock()

	log := t.config.Log.With("id", to.ID, "kind", to.Kind, "duration", to.FinishedAt.Sub(to.StartedAt))
	switch {
	case unwritten != nil:
		log.Error("the task's end is not in the journal: the next start will run it again", "cause", errors.Join(unwritten, err))
	case err != nil:
		log.Error("task failed", "cause", err)
	default:
		log.Info("task succeeded")
	}
}

// ended returns how the task will look when it has finished.
func (task Task) ended(status Status, result, problem json.RawMessage) Task {
	task.Status, task.Result, task.Error, task.FinishedAt = status, result, problem, time.Now().UTC()
	if status == Succeeded {
		task.Progress = 1
	}
	return task
}

// requeued returns how the task will look when it waits for its next run.
func (task Task) requeued(attempt int) Task {
	task.Status, task.Attempt, task.StartedAt, task.Progress = Queued, attempt, time.Time{}, 0
	return task
}

// problem is what a client may know of err. Config.Error is foreign code: it is never called under
// the mutex, and may panic, or return what is no JSON, without harm to the program or the journal.
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

// Get returns a task. The error is ErrGone for an id of this run that is forgotten, and for any
// unknown one of another run; and ErrNotFound for a number that this run has not given yet, and
// for what is no id.
func (t *Tasks) Get(id string) (Task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, err := t.find(id)
	if err != nil {
		return Task{}, err
	}
	return j.Task, nil
}

// taskID is <run>-<number>, so that an id tells its own story: whether this run has given it can be
// seen without a list of all that it gave.
var taskID = regexp.MustCompile(`^[a-z2-7]{8}-[1-9][0-9]{0,17}$`)

// find returns a job, ErrGone or ErrNotFound. t.mu is held.
func (t *Tasks) find(id string) (*job, error) {
	if j := t.jobs[id]; j != nil {
		return j, nil
	}
	run, number, _ := strings.Cut(id, "-")
	n, _ := strconv.ParseUint(number, 10, 64)
	if !taskID.MatchString(id) || run == t.runID && n > t.last {
		return nil, ErrNotFound
	}
	return nil, ErrGone
}

// Wait is Get, but first waits until the task has finished, is left for the next start by Stop, or
// ctx ends.
func (t *Tasks) Wait(ctx context.Context, id string) (Task, error) {
	t.mu.Lock()
	j, err := t.find(id)
	t.mu.Unlock()
	if err != nil {
		return Task{}, err
	}
	select {
	case <-j.ctx.Done():
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return j.Task, nil
}

// List returns the newest tasks first, at most limit of them: of one status, or of all if it is "".
func (t *Tasks) List(status Status, limit int) []Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	tasks := []Task{}
	for _, id := range slices.Backward(t.created) {
		if len(tasks) == limit {
			break
		}
		if j := t.jobs[id]; j != nil && (status == "" || status == j.Status) {
			tasks = append(tasks, j.Task)
		}
	}
	return tasks
}

// Cancel ends a task: it is canceled from this moment, its context ends with ErrCanceled, and
// what it still returns is dropped. To cancel it again is no error. The error is Get's; ErrFinished
// if the task has succeeded or failed; ErrNotAccepting if the journal can't be written; or
// ErrStopped if Stop has left the task in the journal. The last two refuse what the next start
// would undo.
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
	if j.ctx.Err() != nil { // Stop has left it to the journal
		return Task{}, ErrStopped
	}
	to := j.ended(Canceled, nil, problem)
	if err := t.write(to); err != nil {
		return Task{}, err
	}
	t.queue = slices.DeleteFunc(t.queue, func(queued string) bool { return queued == id })
	j.end(ErrCanceled) // before set ends the context without a cause
	t.set(to)
	return to, nil
}

// Counts returns how many tasks are in each status, with those forgotten since Start.
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

// Stop refuses new tasks, and waits until the accepted ones have finished or ctx ends: the running
// ones, and the queue too, unless a journal keeps it for the next start. What is left then is
// named in the log and cut off: its context ends with ErrStopped, and it is canceled, or, with a
// journal, queued for the next start. Last, the journal is closed; the error is what went wrong
// with it. Get, Wait and List go on.
//
// A second call waits for the tasks that were cut off to return. Its error says that one had not
// when ctx ended.
func (t *Tasks) Stop(ctx context.Context) error {
	t.mu.Lock()
	again, running, queued := t.stopping, t.counts[Running], t.counts[Queued]
	t.accepting, t.stopping = false, true
	if t.journal != nil {
		t.queue = nil // the journal has it
	}
	t.wake.Broadcast()
	t.mu.Unlock()
	if !again && running+queued > 0 {
		t.config.Log.Info("waiting for the tasks", "running", running, "queued", queued, "queue stays", t.journal != nil)
	}

	over, done := context.WithCancel(ctx)
	go func() { // ends with the last worker
		t.workers.Wait()
		done()
	}()
	<-over.Done()
	if !again {
		return t.cutOff()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("a task goes on although its context has ended: %w", ctx.Err())
	}
	return nil
}

// cutOff ends what is left when Stop's time is over, and closes the journal.
func (t *Tasks) cutOff() error {
	problem := t.problem(ErrStopped)
	t.mu.Lock()
	var left []string
	for _, id := range slices.Clone(t.created) { // set may sweep the original
		j := t.jobs[id]
		if j == nil || j.Status.Finished() {
			continue
		}
		left = append(left, id)
		j.end(ErrStopped)
		to := j.ended(Canceled, nil, problem)
		if t.journal != nil {
			to = j.requeued(0) // an orderly stop counts anew
			if j.Status == Running || j.Attempt > 0 {
				_ = t.write(to) // if that fails, broken says so below
			}
		}
		t.set(to)
	}
	t.queue = nil // from here on nothing is written
	broken := t.broken
	t.mu.Unlock()

	if t.journal == nil {
		if len(left) > 0 {
			t.config.Log.Warn("tasks were canceled by the stop", "ids", left)
		}
		return nil
	}
	if len(left) > 0 {
		t.config.Log.Info("tasks are left in the journal for the next start", "ids", left)
	}
	return errors.Join(broken, t.journal.Sync(), t.journal.Close())
}

// The journal: a write-ahead log. Every change of a task's status is a line of JSON, the task as it
// is from then on, written before anyone is told; Start reads the lines, and the last one of a task
// wins.
//
// What it promises: a task that was acknowledged is not lost when the program is killed. One that
// had not finished runs again, unless it was running at three crashes with no orderly stop between.
// What it does not promise: to survive a power loss (a line is not synced before Stop), or two
// programs on one file; nor to stay small while the program runs: only Start compacts it.
//
// Its answer to trouble is to stop, not to repair. A line that can't be read stops the start; after
// a line that can't be written no task is accepted or started.

// maxAttempts is at how many crashes a task may be running, with no orderly stop between. After
// that the task is taken for the cause. A second signal, which kills, counts as a crash too.
const maxAttempts = 3

// write appends a line. The first one that fails is the last: another would stand behind half a
// line. All that was acknowledged is before it, and the next start finds it. t.mu is held.
func (t *Tasks) write(to Task) error {
	if t.journal == nil {
		return nil
	}
	if t.broken != nil {
		return t.broken
	}
	line, err := encode(to)
	if err != nil {
		return err
	}
	if !json.Valid(line) {
		return errors.New("it is nested too deeply to be read back from the journal")
	}
	if _, err := t.journal.Write(append(line, '\n')); err != nil {
		t.accepting, t.queue = false, nil
		t.broken = fmt.Errorf("%w: %w", ErrNotAccepting, err)
		t.wake.Broadcast() // the workers end
	}
	return t.broken
}

// openJournal reads the file, and puts a new one in its place with what is kept. If that fails, the
// file still says what it said.
func (t *Tasks) openJournal(path string) error {
	// A pipe would block when it is opened, so what is there is looked at first.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("the journal %s is not a regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // it holds what clients sent
	if err == nil {
		defer f.Close()
		path, err = filepath.EvalSymlinks(path) // or the new file would replace a link
	}
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	if err := t.replay(f); err != nil {
		return err
	}
	t.resume()
	f.Close() // Windows replaces no open file
	if t.journal, err = t.compact(path); err != nil {
		return fmt.Errorf("compact the journal: %w", err)
	}
	t.config.Log.Info("read the journal", "file", path, "tasks", len(t.jobs), "run again", len(t.queue))
	return nil
}

// replay reads the file, line by line, and keeps what retention keeps. Half a line at its end is a
// write that the end of the program cut off, so that nobody was told; but if it does not begin as a
// line of a journal does, another file was named.
func (t *Tasks) replay(f *os.File) error {
	const begin = `{"id":"` // of every line that is written
	r := bufio.NewReader(f) // not a bufio.Scanner: it ends at a line of 64 KiB, silently
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		switch {
		case err == io.EOF && len(line) == 0:
			return nil
		case err == nil || err == io.EOF && json.Valid(line): // whole, even if its line feed is missing
			err = t.restore(line)
		case err == io.EOF && (bytes.HasPrefix(line, []byte(begin)) || strings.HasPrefix(begin, string(line))):
			t.config.Log.Warn("dropped half a line at the journal's end", "file", f.Name(), "line", n, "bytes", len(line))
			return nil
		case err == io.EOF:
			err = errors.New("this is not a journal")
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w: mend or remove the line, or start with another journal", f.Name(), n, err)
		}
	}
}

// restore makes what a line says what is known of its task.
func (t *Tasks) restore(line []byte) error {
	var record struct {
		Task
		Crashes json.RawMessage `json:"crashes"` // an older version wrote it; it is ignored
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields() // a damaged name would lose its value
	if err := dec.Decode(&record); err != nil {
		return fmt.Errorf("this is not a task: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF || !taskID.MatchString(record.ID) || !slices.Contains(Statuses, record.Status) {
		return errors.New("this is not a task")
	}
	if j := t.jobs[record.ID]; j != nil && j.Status.Finished() {
		return fmt.Errorf("the task %s had already finished", record.ID)
	}
	t.set(record.Task)
	return nil
}

// resume puts what replay has kept in order, and what had not finished in the queue. A task that
// was running at its third crash is failed instead.
func (t *Tasks) resume() {
	jobs := slices.SortedFunc(maps.Values(t.jobs), func(a, b *job) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), len(a.ID)-len(b.ID), strings.Compare(a.ID, b.ID))
	})
	t.created = nil
	clear(t.counts)
	for _, j := range jobs {
		t.created = append(t.created, j.ID)
		t.counts[j.Status]++
		switch {
		case j.Status.Finished():
		case j.Status == Running && j.Attempt >= maxAttempts:
			t.config.Log.Error("task failed", "id", j.ID, "kind", j.Kind, "cause", ErrCrashed)
			t.set(j.ended(Failed, nil, t.problem(ErrCrashed)))
		default:
			t.set(j.requeued(j.Attempt))
			t.queue = append(t.queue, j.ID)
		}
	}
}

// compact writes what is kept to a new file (the finished tasks in the order they finished, which
// is the order they will be forgotten in, and then the others), renames it to path, and opens it.
func (t *Tasks) compact(path string) (*os.File, error) {
	temp := path + ".new"
	os.Remove(temp) // left over from a start that was killed; what can't be removed is an error next
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriter(f) // its first error is Flush's too
	for _, id := range slices.Concat(t.finished, t.queue) {
		line, e := encode(t.jobs[id].Task)
		err = cmp.Or(err, e)
		w.Write(append(line, '\n'))
	}
	if err = errors.Join(err, w.Flush(), f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
}
