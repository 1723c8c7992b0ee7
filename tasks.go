// Lesson 3: how do I answer now and work later?
//
// The lecture says: run slow work in the background, answer at once, store the result, and let the
// client fetch it with GET:
//
//	@app.post("/task", status_code=202)
//	def create_task(task_input: TaskInput, background_tasks: BackgroundTasks):
//	    background_tasks.add_task(cpu_bound_task, task_input.id_, task_input.wait_time)
//	    return task_input.id_
//
// Go says: starting a goroutine takes one word, but a server must also decide how many tasks run at
// once, how many may wait, who sees the result, and what happens at shutdown. That takes a map of
// jobs under a mutex, a bounded queue, and a fixed number of workers:
//
//	tasks := NewTasks(Config{Kinds: map[string]Kind{"mail": {Run: sendMail}}})
//	if err := tasks.Start(""); err != nil { // "" means no journal, in memory only
//		log.Fatal(err)
//	}
//	defer tasks.Stop(context.Background())
//
//	task, err := tasks.Submit("mail", input) // now: answer 202 with task.ID
//	task, err = tasks.Get(task.ID)           // later: task.Status, task.Result
//
// The queue is a slice under the mutex, with a sync.Cond to wake the workers, rather than a
// channel: a waiting task can be canceled and listed, while a value in a channel can only be
// received.
//
// This file imports only the standard library. To use it elsewhere, copy it and change the package
// clause. It needs Go 1.25.

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

// ---- The types: tasks, their kinds, the settings, the errors

// Run does a task's work on task.Input and may report progress, from 0 to 1. The task is a snapshot
// from its start, with the same ID in every attempt. ctx is canceled when the task is canceled or
// Stop runs out of time; Run should return soon after that. Run must not call runtime.Goexit.
type Run func(ctx context.Context, task Task, progress func(float64)) (result any, err error)

// Kind is one kind of task.
type Kind struct {
	// Check rejects bad input at submission, and returns good input with the defaults filled in. A
	// nil Check accepts any JSON that is not nested too deeply.
	Check func(input json.RawMessage) (json.RawMessage, error)
	Run   Run
}

// Config holds the settings for NewTasks.
type Config struct {
	Kinds   map[string]Kind
	Workers int // tasks that run at once, at most 1000; 0 means GOMAXPROCS-1, but at least 1
	Queue   int // tasks that may wait for a worker; 0 means 1000
	Keep    int // finished tasks that can still be fetched; 0 means 1000

	Error func(error) json.RawMessage // describes an error to clients; nil means "the task failed"
	Log   *slog.Logger                // nil means slog.Default()
}

// Status is a task's state: queued, then running, then finally one of the other three. A queued
// task can also be canceled, and with a journal, a shutdown or a crash can requeue a running one.
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

// Task is a snapshot of a task. The bytes of its JSON fields are shared, so don't modify them.
// Attempt counts its starts since it was submitted or since the last graceful shutdown.
type Task struct {
	ID         string          `json:"id"`
	Kind       string          `json:"kind"`
	Status     Status          `json:"status"`
	Attempt    int             `json:"attempt"`
	Progress   float64         `json:"progress"` // 0 to 1; never decreases during a run
	Input      json.RawMessage `json:"input"`
	Result     json.RawMessage `json:"result,omitempty"` // if it succeeded
	Error      json.RawMessage `json:"error,omitempty"`  // if it failed or was canceled
	CreatedAt  time.Time       `json:"created_at"`
	StartedAt  time.Time       `json:"started_at,omitzero"`
	FinishedAt time.Time       `json:"finished_at,omitzero"`
}

// Errors returned by Submit, Get, Wait and Cancel, or recorded in failed or canceled tasks.
var (
	ErrUnknownKind  = errors.New("no such kind of task")
	ErrBadInput     = errors.New("the input is not JSON or is nested too deeply")
	ErrQueueFull    = errors.New("the queue is full")
	ErrNotAccepting = errors.New("no tasks are being accepted")
	ErrNotFound     = errors.New("no such task")
	ErrGone         = errors.New("the task is no longer available")
	ErrFinished     = errors.New("the task has already finished")
	ErrCanceled     = errors.New("the task was canceled")
	ErrStopped      = errors.New("the server stopped before the task finished")
	ErrCrashed      = errors.New("the server crashed three times while running the task")
	ErrKindGone     = errors.New("the server no longer has this kind of task")
)

// encode marshals v to JSON without escaping <, > and &.
func encode(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// listable reports whether data is one JSON value that a list of tasks can hold two levels deeper:
// encoding/json reads at most 10,000 levels and, since Go 1.27, writes no more.
func listable(data json.RawMessage) bool {
	return json.Valid(data) && json.Valid(slices.Concat([]byte("[["), data, []byte("]]")))
}

// ---- The map, the queue, the workers

// Tasks holds the background jobs, their queue, and the workers that empty it.
type Tasks struct {
	config  Config
	runID   string   // the first part of every id that this run of the program assigns
	journal *os.File // set by Start; nil if there is none
	workers sync.WaitGroup
	report  sync.Once // logs a broken journal once, without the mutex

	mu        sync.Mutex // guards the fields below and every job
	wake      sync.Cond  // wakes the workers for a new task, Stop, or a broken journal
	accepting bool
	stopping  bool   // Stop was called
	last      uint64 // the number in the last id assigned
	jobs      map[string]*job
	created   []string // ids in order of creation; up to half may belong to dropped tasks
	queue     []string // ids of the queued tasks, in order
	finished  []string // ids of the finished tasks still kept, in the order they finished
	counts    map[Status]int
	broken    error // the journal's write error
}

// job is a task with its context, which is canceled when the task finishes, or earlier by Cancel or
// Stop. Run gets the context, and Wait waits for it.
type job struct {
	Task
	ctx context.Context
	end context.CancelCauseFunc
}

// NewTasks returns an empty Tasks, which accepts no tasks before Start. It panics if a number in c
// is negative or Workers is above 1000: each running task holds a thread, and Go allows 10,000.
func NewTasks(c Config) *Tasks {
	if c.Workers < 0 || c.Workers > 1000 || c.Queue < 0 || c.Keep < 0 {
		panic(fmt.Sprintf("tasks: number out of range in Config: Workers %d, Queue %d, Keep %d", c.Workers, c.Queue, c.Keep))
	}
	// If Go has at least two processors, one stays free for requests: with none free, the scheduler
	// polls the network only every 10 ms.
	c.Workers = cmp.Or(c.Workers, max(1, runtime.GOMAXPROCS(0)-1))
	c.Queue = cmp.Or(c.Queue, 1000)
	c.Keep = cmp.Or(c.Keep, 1000)
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Error == nil {
		c.Error = func(error) json.RawMessage { return nil } // problem then uses its own text
	}
	t := &Tasks{config: c, runID: strings.ToLower(rand.Text()[:8]), jobs: map[string]*job{}, counts: map[Status]int{}}
	t.wake.L = &t.mu
	return t
}

// Start reads the journal at this path, unless the path is "", and starts the workers. Call it
// once, and call no other method while it runs.
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

// Submit queues a task and returns at once. Its error is ErrUnknownKind, Check's, ErrBadInput,
// ErrQueueFull, or ErrNotAccepting: before Start, after Stop, or if the journal can't be written.
func (t *Tasks) Submit(kind string, input json.RawMessage) (Task, error) {
	k, ok := t.config.Kinds[kind]
	if !ok {
		return Task{}, ErrUnknownKind
	}
	if k.Check != nil {
		var err error
		if input, err = k.Check(input); err != nil {
			return Task{}, err
		}
	}
	input = json.RawMessage(cmp.Or(string(input), "null")) // a copy
	if !listable(input) {
		return Task{}, ErrBadInput
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

// set stores a task's new state and drops the oldest finished tasks beyond Keep. Write the state to
// the journal first. The caller holds t.mu or is Start.
func (t *Tasks) set(to Task) {
	j := t.jobs[to.ID]
	if j == nil {
		// A task outlives the request that submits it, so it has its own context.
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
	j.end(nil) // a cause set earlier stays
	t.finished = append(t.finished, to.ID)
	for len(t.finished) > t.config.Keep { // drop the oldest
		delete(t.jobs, t.finished[0])
		t.finished = t.finished[1:]
	}
	if len(t.created) > 2*len(t.jobs) {
		t.created = slices.DeleteFunc(t.created, func(id string) bool { return t.jobs[id] == nil })
	}
}

// work runs one task after another until next returns an error.
func (t *Tasks) work() {
	for {
		j, task, err := t.next()
		if err != nil {
			if err != ErrStopped {
				t.report.Do(func() { t.config.Log.Error("no more tasks are accepted or started", "cause", err) })
			}
			return
		}
		result, err := t.run(j, task)
		t.finish(j, result, err)
	}
}

// next waits for a task and marks it as running. It returns an error when there will be no more
// tasks: after Stop, once the queue is empty, or when the journal is broken.
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
	task := j.started()
	if err := t.write(task); err != nil {
		return nil, Task{}, err
	}
	t.set(task)
	t.queue = t.queue[1:]
	return j, task, nil
}

// run calls the Run of the task's kind. task is a copy, since Cancel may change the one in j
// meanwhile.
func (t *Tasks) run(j *job, task Task) (result json.RawMessage, err error) {
	kind, ok := t.config.Kinds[task.Kind]
	if !ok {
		return nil, ErrKindGone // the task is from a journal
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	// While it runs, the task has a thread of its own. Otherwise Go moves a computing task to
	// another thread every 10 ms, and requests wait for the kernel to schedule them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v, err := kind.Run(j.ctx, task, func(p float64) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if j.Status == Running && p > j.Progress { // false for NaN
			j.Progress = min(p, 1)
		}
	})
	if err != nil {
		return nil, err
	}
	if result, err = encode(v); err == nil && !listable(result) {
		err = errors.New("the result is nested too deeply")
	}
	return result, err
}

// finish records a task's outcome, unless the task was canceled or cut off meanwhile. If the
// journal can't be written, clients still see the outcome, and the next start runs the task again.
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
		log.Error("the task's outcome is not in the journal, so the next start will run it again", "cause", errors.Join(unwritten, err))
	case err != nil:
		log.Error("task failed", "cause", err)
	default:
		log.Info("task succeeded")
	}
}

// started returns the task in its running state.
func (task Task) started() Task {
	task.Status, task.Attempt, task.StartedAt = Running, task.Attempt+1, time.Now().UTC()
	return task
}

// ended returns the task in its final state.
func (task Task) ended(status Status, result, problem json.RawMessage) Task {
	task.Status, task.Result, task.Error, task.FinishedAt = status, result, problem, time.Now().UTC()
	if status == Succeeded {
		task.Progress = 1
	}
	return task
}

// requeued returns the task in its queued state, ready to run again.
func (task Task) requeued(attempt int) Task {
	task.Status, task.Attempt, task.StartedAt, task.Progress = Queued, attempt, time.Time{}, 0
	return task
}

// problem returns Config.Error's description of err for clients. Config.Error is the caller's code,
// so it is never called under the mutex, and a panic or invalid JSON is replaced by a fixed text.
func (t *Tasks) problem(err error) (problem json.RawMessage) {
	defer func() {
		if recover() != nil || !listable(problem) {
			problem = json.RawMessage(`{"detail":"the task failed"}`)
		}
	}()
	return t.config.Error(err)
}

// Get returns a task. The error is ErrGone for a task of this run that was dropped and for an
// unknown task of another run, and ErrNotFound for an id that this run has not assigned yet or that
// is malformed.
func (t *Tasks) Get(id string) (Task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, err := t.find(id)
	if err != nil {
		return Task{}, err
	}
	return j.Task, nil
}

// taskID matches <run>-<number>. An id alone shows whether this run has assigned it, so no list of
// old ids is needed.
var taskID = regexp.MustCompile(`^[a-z2-7]{8}-[1-9][0-9]{0,17}$`)

// find returns a job, ErrGone or ErrNotFound. The caller holds t.mu.
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

// Wait is like Get, but first waits until the task has finished, Stop has left it for the next
// start, or ctx is done.
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

// List returns at most limit tasks with this status, or with any status if it is "", newest first.
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

// Cancel cancels a task at once: its context is canceled with ErrCanceled, and the result of its
// Run is discarded. Canceling it again is not an error. The error is Get's, ErrFinished if the task
// has succeeded or failed, ErrNotAccepting if the journal can't be written, or ErrStopped if Stop
// has left the task in the journal. In the last two cases, the next start would undo the
// cancellation.
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
	if j.ctx.Err() != nil { // Stop has left it in the journal
		return Task{}, ErrStopped
	}
	to := j.ended(Canceled, nil, problem)
	if err := t.write(to); err != nil {
		return Task{}, err
	}
	t.queue = slices.DeleteFunc(t.queue, func(queued string) bool { return queued == id })
	j.end(ErrCanceled) // before set cancels the context without a cause
	t.set(to)
	return to, nil
}

// Counts returns the number of tasks in each status, including those dropped since Start.
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

// Stop refuses new tasks, and waits until the running ones, and without a journal also the queued
// ones, have finished or ctx is done. The remaining tasks are logged and cut off: their contexts
// are canceled with ErrStopped, and they become canceled or, with a journal, queued for the next
// start. Finally, Stop closes the journal and returns its error. Get, Wait and List keep working.
//
// A second call waits for the tasks that were cut off to return, and returns an error if ctx is
// done first.
func (t *Tasks) Stop(ctx context.Context) error {
	t.mu.Lock()
	again, running, queued := t.stopping, t.counts[Running], t.counts[Queued]
	t.accepting, t.stopping = false, true
	if t.journal != nil && !again {
		t.queue = nil // the journal has these tasks
		for _, j := range t.jobs {
			if !j.Status.Finished() && j.Attempt > 0 {
				_ = t.write(j.requeued(0)) // now, so that a later kill is not a crash
			}
		}
	}
	t.wake.Broadcast()
	t.mu.Unlock()
	if !again && running+queued > 0 {
		t.config.Log.Info("waiting for tasks", "running", running, "queued", queued, "queue_kept", t.journal != nil)
	}

	over, done := context.WithCancel(ctx)
	go func() { // returns after the last worker
		t.workers.Wait()
		done()
	}()
	<-over.Done()
	if !again {
		return t.cutOff()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("a task is still running although its context was canceled: %w", ctx.Err())
	}
	return nil
}

// cutOff cancels or requeues the tasks left after Stop's wait, and closes the journal.
func (t *Tasks) cutOff() error {
	problem := t.problem(ErrStopped)
	t.mu.Lock()
	var left []string
	for _, id := range slices.Clone(t.created) { // set may remove ids from the original
		j := t.jobs[id]
		if j == nil || j.Status.Finished() {
			continue
		}
		left = append(left, id)
		j.end(ErrStopped)
		if t.journal != nil {
			t.set(j.requeued(0)) // the journal already has this state
		} else {
			t.set(j.ended(Canceled, nil, problem))
		}
	}
	t.queue = nil // so that no worker starts another task
	broken := t.broken
	t.mu.Unlock()

	if t.journal == nil {
		if len(left) > 0 {
			t.config.Log.Warn("tasks were canceled by the shutdown", "ids", left)
		}
		return nil
	}
	if len(left) > 0 {
		t.config.Log.Info("tasks are left in the journal for the next start", "ids", left)
	}
	return errors.Join(broken, t.journal.Sync(), t.journal.Close())
}

// ---- The journal: writing it, and reading it at Start

// The journal is a write-ahead log. Every change of a task's status adds one line of JSON, the
// task's new state, before anyone is told. Start reads the lines; a task's last line wins.
//
// It promises that an acknowledged task is not lost when the program is killed. An unfinished task
// runs again, unless it was running during three crashes with no graceful shutdown in between. It
// does not promise to survive a power loss (a line is not synced before Stop), to work with two
// programs on one file, or to stay small while the program runs (only Start compacts it).
//
// It does not repair damage. A complete line that can't be read makes Start fail; after a failed
// write, no task is accepted or started.

// maxAttempts is the number of crashes, with no graceful shutdown in between, that make a task fail
// if it was running in each. A kill counts as a crash unless Stop had begun.
const maxAttempts = 3

// write appends a line. After a failed write it writes no more, since the next line might follow an
// incomplete one. The next start finds everything acknowledged before. The caller holds t.mu.
func (t *Tasks) write(to Task) error {
	if t.journal == nil {
		return nil
	}
	if t.broken != nil {
		return t.broken
	}
	line, err := encode(to)
	if err == nil {
		_, err = t.journal.Write(append(line, '\n'))
	}
	if err != nil {
		t.accepting, t.queue = false, nil
		t.broken = fmt.Errorf("%w: %w", ErrNotAccepting, err)
		t.wake.Broadcast() // so that the workers return
	}
	return t.broken
}

// openJournal reads the file and replaces it with a compacted one. On failure, the file is
// unchanged.
func (t *Tasks) openJournal(path string) error {
	// Check the file's type first, since reading a pipe would block.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("the journal %s is not a regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // it holds clients' data
	if err == nil {
		defer f.Close()
		path, err = filepath.EvalSymlinks(path) // otherwise the new file would replace a symlink
	}
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	if err := t.replay(f); err != nil {
		return err
	}
	t.resume()
	f.Close() // Windows can't replace an open file
	if t.journal, err = t.compact(path); err != nil {
		return fmt.Errorf("compact the journal: %w", err)
	}
	t.config.Log.Info("journal read", "file", path, "tasks", len(t.jobs), "requeued", len(t.queue))
	return nil
}

// replay reads the lines and keeps the tasks that Config.Keep allows. A line counts only with its
// line feed: they are one write, so without it nobody was told. Text after the last line feed is
// dropped, unless it is the whole file and doesn't look like a task: then it isn't a journal.
func (t *Tasks) replay(f *os.File) error {
	r := bufio.NewReader(f) // not a bufio.Scanner, which stops at a line over 64 KiB
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		switch {
		case err == io.EOF && len(line) == 0:
			return nil
		case err == io.EOF && (n > 1 || looksLikeTask(line)):
			t.config.Log.Warn("dropped an incomplete line at the end of the journal",
				"file", f.Name(), "line", n, "bytes", len(line))
			return nil
		case err == io.EOF:
			err = errors.New("not a journal")
		case err == nil:
			err = t.restore(line)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w: fix or remove the line, or use another journal", f.Name(), n, err)
		}
	}
}

// restore sets a task to the state that a line records.
func (t *Tasks) restore(line []byte) error {
	task, err := decodeTask(line)
	if err != nil {
		return err
	}
	if j := t.jobs[task.ID]; j != nil && j.Status.Finished() {
		return fmt.Errorf("the task %s had already finished", task.ID)
	}
	t.set(task)
	return nil
}

// decodeTask decodes a line, which must be one task and nothing else.
func decodeTask(line []byte) (task Task, err error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields() // otherwise a damaged field name would lose its value
	if err := dec.Decode(&task); err != nil {
		return task, fmt.Errorf("not a task: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF || !taskID.MatchString(task.ID) || !slices.Contains(Statuses, task.Status) {
		return task, errors.New("not a task")
	}
	return task, nil
}

// looksLikeTask reports whether the text is a task or the beginning of one.
func looksLikeTask(text []byte) bool {
	begin := []byte(`{"id":"`) // the beginning of every line
	_, err := decodeTask(text)
	return err == nil || !json.Valid(text) && (bytes.HasPrefix(text, begin) || bytes.HasPrefix(begin, text))
}

// resume sorts the tasks that replay kept and queues the unfinished ones. A task that was running
// during its third crash fails instead.
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

// compact writes the kept tasks to a new file, renames it to path, and opens it. The finished tasks
// come first, in the order in which they finished and will be dropped.
func (t *Tasks) compact(path string) (*os.File, error) {
	temp := path + ".new"
	os.Remove(temp) // a killed start may have left it; if it can't be removed, OpenFile fails
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriter(f) // Flush returns the first write error
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
