// Lesson 2: how does a failure reach the client, and how the log?
//
// The lecture says: tell the client what went wrong and why, and collect the errors in the log
// for yourself. FastAPI raises:
//
//	raise HTTPException(status_code=404, detail=f"아이템을 찾을 수 없습니다 [id: {item_id}]")
//
// Go says: errors are values, so a handler returns one, and one place turns it into a reply:
//
//	func findItem(w http.ResponseWriter, r *http.Request) error {
//		id, err := PathInt(r, "item_id")
//		if err != nil {
//			return err // 422, with the place
//		}
//		item, ok := items[id]
//		if !ok {
//			return Errorf(http.StatusNotFound, "아이템을 찾을 수 없습니다 [id: %d]", id)
//		}
//		return WriteJSON(w, http.StatusOK, item)
//	}
//
//	mux.Handle("GET /v2/{item_id}", Endpoint(findItem))
//	http.ListenAndServe("localhost:8000", Observe(slog.Default(), mux))
//
// Every error reply is an RFC 9457 problem. What the client may know is in an HTTPError; any
// other error is a 500 that says nothing but the request id, under which the log has the cause.
//
// This file needs nothing but the standard library: copy it and it works.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"mime"
	"net/http"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// HTTPError is an error that the client may see: FastAPI's HTTPException.
type HTTPError struct {
	Status int          // 400 to 599
	Detail string       // what went wrong, for a person
	Fields []FieldError // the parts of the request at fault, of a 422
	Header http.Header  // sent with the reply: Retry-After, Allow

	cause error
}

// FieldError is one part of a request that does not fit, in FastAPI's words.
type FieldError struct {
	Loc []string `json:"loc"` // the place: ["path", "item_id"], ["body", "input", "n"]
	Msg string   `json:"msg"`
}

// Errorf returns an HTTPError with a formatted detail. The client reads it: nothing internal.
func Errorf(status int, format string, args ...any) *HTTPError {
	return &HTTPError{Status: status, Detail: fmt.Sprintf(format, args...), Header: http.Header{}}
}

// Invalid returns the 422 for the fields at fault.
func Invalid(fields ...FieldError) *HTTPError {
	details := make([]string, len(fields))
	for i, f := range fields {
		details[i] = strings.Join(f.Loc, ".") + " " + f.Msg
	}
	e := Errorf(http.StatusUnprocessableEntity, "%s", strings.Join(details, "; "))
	e.Fields = fields
	return e
}

// Because returns a copy of e with a cause, which the log is told and the client is not.
func (e *HTTPError) Because(cause error) *HTTPError {
	c := *e
	c.cause = cause
	return &c
}

// Error is for the log: the status, the detail and the cause.
func (e *HTTPError) Error() string {
	s := fmt.Sprintf("%d %s", e.Status, e.Detail)
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *HTTPError) Unwrap() error { return e.cause }

// Problem is the body of every error reply (RFC 9457). Its detail is the detail of FastAPI's
// HTTPException, where a client of the lecture's app will look for it.
type Problem struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail,omitzero"`
	Errors    []FieldError `json:"errors,omitempty"`
	RequestID string       `json:"request_id,omitzero"`
}

// NewProblem returns what a client may know of err: all of an HTTPError but its cause, that a
// body was too large, and of any other error only that the server failed.
func NewProblem(err error) Problem {
	e := publicError(err)
	return Problem{
		Type:   "about:blank", // "the status says it all" (RFC 9457, 4.2.1)
		Title:  http.StatusText(e.Status),
		Status: e.Status,
		Detail: e.Detail,
		Errors: e.Fields,
	}
}

func publicError(err error) *HTTPError {
	if e, ok := errors.AsType[*HTTPError](err); ok && e.Status >= 400 && e.Status <= 599 {
		return e
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return Errorf(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", e.Limit)
	}
	return &HTTPError{Status: http.StatusInternalServerError}
}

// Endpoint is a handler that may fail. It is an http.Handler, so any router takes it.
type Endpoint func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP calls the endpoint and answers the error it returns. An endpoint that no Observe is
// around is observed here, with slog.Default().
func (h Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if observed(w) == nil {
		Observe(slog.Default(), h).ServeHTTP(w, r)
		return
	}
	if err := h(w, r); err != nil {
		WriteError(w, r, err)
	}
}

// WriteError answers a request with err: the one place where every error reply is made. If the
// reply has begun, or the client went away, it aborts the connection instead: a truncated 200
// must never look whole.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	rep := observed(w)
	if rep == nil {
		Endpoint(func(http.ResponseWriter, *http.Request) error { return err }).ServeHTTP(w, r)
		return
	}
	rep.err = err
	if rep.status != 0 || rep.clientGone() && errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	for _, name := range []string{ // they spoke of the reply that failed
		"Content-Length", "Content-Encoding", "Content-Range", "Content-Disposition", "Etag", "Last-Modified",
	} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store") // a 404 may be kept otherwise (RFC 9111, 4.2.2)
	maps.Copy(h, publicError(err).Header)
	p := NewProblem(err)
	p.RequestID = rep.header[0]
	if err := writeJSON(w, p.Status, "application/problem+json", p); err != nil {
		rep.err = errors.Join(rep.err, err)
	}
}

// WriteJSON answers with v as JSON. It is marshalled before the status is sent, so that a value
// that can't be is still a proper 500.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	return writeJSON(w, status, "application/json", v)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // this is no HTML, and nosniff says so
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the reply: %w", err)
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if _, err := w.Write(body.Bytes()); err != nil {
		return fmt.Errorf("write the reply: %w", err)
	}
	return nil
}

// Observe gives every request an id (X-Request-Id, the client's own if it is fit to be logged)
// and one line in the log when it is done, with the cause if it failed. A panic is a 500, and
// its stack is in the log; http.ErrAbortHandler goes on up to net/http.
//
// It belongs outermost. Middleware between it and the mux that replaces the request hides the
// route from the log, and one that replaces w needs an Unwrap method, or errors are observed twice.
func Observe(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rep := &reply{ResponseWriter: w, request: r, start: time.Now()}
		rep.header = [...]string{requestID(r), "nosniff"}
		h := w.Header()
		h["X-Request-Id"], h["X-Content-Type-Options"] = rep.header[:1:1], rep.header[1:]
		defer rep.finish(log)
		next.ServeHTTP(rep, r)
	})
}

// reply is the ResponseWriter of an observed request, and what the log will say of it.
type reply struct {
	http.ResponseWriter
	request *http.Request
	start   time.Time
	header  [2]string // the values of two header fields; the first is the request id
	status  int       // 0 until the reply has begun
	bytes   int64
	err     error
}

func (rep *reply) WriteHeader(status int) {
	rep.ResponseWriter.WriteHeader(status) // panics if there is no such status
	if rep.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		rep.status = status // the other 1xx do not begin the reply
	}
}

func (rep *reply) Write(p []byte) (int, error) {
	if rep.status == 0 {
		rep.status = http.StatusOK
	}
	n, err := rep.ResponseWriter.Write(p)
	if rep.request.Method != http.MethodHead { // else net/http drops it
		rep.bytes += int64(n)
	}
	return n, err
}

// FlushError sends what was written so far, which begins the reply; http.ResponseController
// calls it. All its other methods reach the connection through Unwrap.
func (rep *reply) FlushError() error {
	err := http.NewResponseController(rep.ResponseWriter).Flush()
	if rep.status == 0 && !errors.Is(err, http.ErrNotSupported) {
		rep.status = http.StatusOK
	}
	return err
}

// Unwrap is how http.ResponseController, and observed, look behind a wrapped ResponseWriter.
func (rep *reply) Unwrap() http.ResponseWriter { return rep.ResponseWriter }

// observed finds the reply behind the wrappers that middleware may have put around it.
func observed(w http.ResponseWriter) *reply {
	for {
		switch t := w.(type) {
		case *reply:
			return t
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return nil
		}
	}
}

// clientGone reports that the client closed the connection.
func (rep *reply) clientGone() bool { return rep.request.Context().Err() != nil }

// finish is deferred by Observe: it recovers, answers a panic, and writes the line.
func (rep *reply) finish(log *slog.Logger) {
	abort := recover()
	var stack []byte
	if abort != nil && abort != http.ErrAbortHandler {
		stack = debug.Stack()
		abort = rep.answer(fmt.Errorf("panic: %v", abort))
	}
	r, status := rep.request, rep.status
	switch {
	case abort != nil && stack == nil && rep.clientGone():
		status = 499 // nginx's number for a client that closed the request
	case abort == nil && status == 0:
		status = http.StatusOK // net/http sends it for a handler that wrote nothing
	}
	level := slog.LevelInfo
	if status >= 500 || abort != nil && status != 499 {
		level = slog.LevelError
	}
	if log.Enabled(r.Context(), level) {
		// Not log.LogAttrs, which reads the clock again and looks up who called it: always this line.
		end := time.Now()
		line := slog.NewRecord(end, level, "request", 0)
		line.AddAttrs(
			slog.String("method", r.Method),
			slog.String("path", r.URL.Path),
			slog.String("route", r.Pattern[strings.IndexByte(r.Pattern, ' ')+1:]), // without its method
			slog.Int("status", status),
			slog.Int64("bytes", rep.bytes),
			slog.Duration("duration", end.Sub(rep.start)),
			slog.String("request_id", rep.header[0]),
		)
		if rep.err != nil {
			line.AddAttrs(slog.Any("cause", rep.err))
		}
		if stack != nil {
			line.AddAttrs(slog.String("stack", string(stack)))
		}
		_ = log.Handler().Handle(r.Context(), line) // as slog.Logger does: no one is left to tell
	}
	if abort != nil {
		panic(abort)
	}
}

// answer is WriteError, but returns what it panicked with.
func (rep *reply) answer(err error) (abort any) {
	defer func() { abort = recover() }()
	WriteError(rep, rep.request, err)
	return nil
}

// requestID returns the client's id if it is 1 to 64 of [A-Za-z0-9._-], which no log or header
// can be forged with, and else a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-')
	}) {
		return strconv.FormatUint(rand.Uint64()|1<<63, 16) // always 16 digits
	}
	return id
}

// maxBody is how many bytes of a request body ReadJSON accepts.
const maxBody = 1 << 20

// ReadJSON decodes the request's body, one JSON value, into v. Its errors are HTTPErrors: 415 for
// another content type, 413 for a body over 1 MiB (before it is read, if its announced length
// says so), 408 for one that came too slowly, 400 for one that is not JSON, 422 for JSON of
// another shape; see DecodeJSON.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return Errorf(http.StatusUnsupportedMediaType, "the Content-Type must be application/json")
	}
	if r.ContentLength > maxBody {
		return &http.MaxBytesError{Limit: maxBody} // a client that sent Expect: 100-continue keeps its body
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Errorf(http.StatusRequestTimeout, "the body did not arrive in time").Because(err)
	}
	if err != nil {
		return Errorf(http.StatusBadRequest, "the body could not be read to its end").Because(err)
	}
	return DecodeJSON(body, v, "body")
}

// DecodeJSON decodes data, one JSON value in UTF-8, into v, a pointer. Its errors are HTTPErrors:
// 400 if data is not that; 422, with its place below loc, for a value of the wrong type, or for a
// field that v does not have (which encoding/json names without the objects around it), one at a
// time; and for all that v finds at fault itself, if it has a method Validate() []FieldError.
func DecodeJSON(data []byte, v any, loc ...string) error {
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		e := Errorf(http.StatusBadRequest, "%s is not JSON", strings.Join(loc, "."))
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			e.Detail += fmt.Sprintf(": see byte %d", syntax.Offset)
		}
		return e.Because(err)
	}
	if !utf8.Valid(data) { // encoding/json would put U+FFFD where the bytes are wrong
		return Errorf(http.StatusBadRequest, "%s is not UTF-8", strings.Join(loc, "."))
	}
	if string(bytes.TrimSpace(data)) == "null" { // encoding/json would leave v as it is
		return Invalid(FieldError{loc, "must not be null"})
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if wrong.Field != "" {
			loc = slices.Concat(loc, strings.Split(wrong.Field, "."))
		}
		return Invalid(FieldError{loc, "must be " + jsonType(wrong.Type.Kind())})
	}
	if err != nil {
		// encoding/json has no type for this one, only its text: json: unknown field "x".
		if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			if name, err := strconv.Unquote(name); err == nil {
				name = fmt.Sprintf("%.64s", name) // a client can make it as long as the body
				return Invalid(FieldError{slices.Concat(loc, []string{name}), "is not a field here"})
			}
		}
		return Invalid(FieldError{loc, "does not have the right shape"}).Because(err)
	}
	if v, ok := v.(interface{ Validate() []FieldError }); ok {
		if fields := slices.Clone(v.Validate()); len(fields) > 0 {
			for i := range fields {
				fields[i].Loc = slices.Concat(loc, fields[i].Loc)
			}
			return Invalid(fields...)
		}
	}
	return nil
}

// jsonType says in JSON's words what a Go type wants, since no client knows Go's.
func jsonType(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "an integer, and not too large"
	default:
		return "of another type"
	}
}

// PathInt returns the path value as an integer: decimal, with a sign or without. If it is not
// one, or does not fit an int64, the error is a 422 that names the place.
func PathInt(r *http.Request, name string) (int64, error) {
	i, err := strconv.ParseInt(r.PathValue(name), 10, 64)
	if err != nil {
		return 0, Invalid(FieldError{[]string{"path", name}, "must be an integer of at most 64 bits"})
	}
	return i, nil
}
