// Lesson 2: what does the client learn about a failure, and what goes in the log?
//
// The lecture says: tell the client what went wrong and why, and collect the errors in the log
// for yourself. FastAPI raises:
//
//	raise HTTPException(status_code=404, detail=f"아이템을 찾을 수 없습니다 [id: {item_id}]") # item not found
//
// Go says: errors are values, so a handler returns one, and one place makes it a response:
//
//	func findItem(w http.ResponseWriter, r *http.Request) error {
//		id, err := ParseInt(r.PathValue("item_id"), "path", "item_id")
//		if err != nil {
//			return err // a 422 that names item_id
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
// An error that an Endpoint returns, or a panic inside Observe, becomes a problem response (RFC
// 9457); if the response has already begun, the connection is aborted instead. An HTTPError tells
// the client its status and detail. A body that is too large gets a 413. Any other error becomes a
// 500 that gives only the request id, under which the log has the cause. A ServeMux's own 404 and
// 405 stay plain text, as do net/http's own error responses.
//
// This file imports only the standard library. To use it elsewhere, copy it and change the package
// clause. It needs Go 1.26.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// HTTPError is an error that the client may see, like FastAPI's HTTPException.
type HTTPError struct {
	Status int          // 400 to 599
	Detail string       // explains the failure to a human reader
	Fields []FieldError // the invalid parts of the request, for a 422
	Header http.Header  // sent with the response, such as Retry-After

	cause error
}

// Errorf returns an HTTPError with a formatted detail. The client reads it, so leave out internals.
func Errorf(status int, format string, args ...any) *HTTPError {
	return &HTTPError{Status: status, Detail: fmt.Sprintf(format, args...), Header: http.Header{}}
}

// Because returns a copy of e with a cause, which is logged but not sent to the client.
func (e *HTTPError) Because(cause error) *HTTPError {
	c := *e
	c.Header, c.cause = e.Header.Clone(), cause // e may be shared by all requests
	return &c
}

// Error returns the status, the detail and the cause, for the log.
func (e *HTTPError) Error() string {
	s := fmt.Sprintf("%d %s", e.Status, e.Detail)
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *HTTPError) Unwrap() error { return e.cause }

// Endpoint is a handler that may return an error. It is an http.Handler, so any router takes it.
type Endpoint func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP calls h and turns its error into a response. If no Observe wraps h, ServeHTTP wraps it
// in one that logs to slog.Default().
func (h Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rep := replyOf(w)
	if rep == nil {
		Observe(slog.Default(), h).ServeHTTP(w, r)
		return
	}
	encoding := w.Header()["Content-Encoding"] // set by middleware, which may encode the body
	to := rep
	if w != rep {
		to = &reply{ResponseWriter: w, request: r} // sees what h writes, even if middleware holds it back
	}
	if err := h(to, r); err != nil {
		rep.status = cmp.Or(rep.status, to.status)
		rep.fail(w, err, encoding)
	}
}

// Problem is the body of an error response (RFC 9457). Its detail has the same place as FastAPI's,
// so a client of the lecture's app finds it.
type Problem struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail,omitzero"`
	Errors    []FieldError `json:"errors,omitempty"`
	RequestID string       `json:"request_id,omitzero"`
}

// NewProblem returns the part of err that a client may see: the status, detail and fields of an
// HTTPError; the limit that a body exceeded; or, for any other error, only a 500.
func NewProblem(err error) Problem {
	// The type about:blank adds nothing to the status (RFC 9457, 4.2.1).
	p := Problem{Type: "about:blank", Status: http.StatusInternalServerError}
	if e, ok := errors.AsType[*HTTPError](err); ok && e.Status >= 400 && e.Status <= 599 {
		p.Status, p.Detail, p.Errors = e.Status, e.Detail, e.Fields
	} else if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		p.Status, p.Detail = http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", e.Limit)
	}
	p.Title = http.StatusText(p.Status)
	return p
}

// fail answers with err; every error response is made here. If the response has already begun, fail
// aborts the connection instead, since a truncated 200 must never look complete. It also aborts if
// err only says that the client has gone, since nobody is there to answer. encoding is the
// Content-Encoding set by middleware between rep and w.
func (rep *reply) fail(w http.ResponseWriter, err error, encoding []string) {
	rep.err = err
	if rep.hijacked {
		return // the connection belongs to the handler
	}
	if rep.status != 0 || rep.clientGone() && errors.Is(err, context.Canceled) {
		rep.aborted = true
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	for _, name := range []string{ // These describe a body that won't be sent.
		"Content-Length", "Content-Encoding", "Content-Range", "Content-Disposition", "Etag", "Last-Modified",
	} {
		h.Del(name)
	}
	if w != rep && encoding != nil {
		h["Content-Encoding"] = encoding
	}
	h.Set("Cache-Control", "no-store") // otherwise a cache may store a 404 (RFC 9111, 4.2.2)
	p := NewProblem(err)
	p.RequestID = rep.id
	// If they differ, NewProblem has made e a bare 500.
	if e, ok := errors.AsType[*HTTPError](err); ok && e.Status == p.Status {
		maps.Copy(h, e.Header)
	}
	if err := writeJSON(w, p.Status, "application/problem+json", p); err != nil {
		rep.err = errors.Join(rep.err, err)
	}
}

// WriteJSON answers with v as JSON. It encodes v before it sends the status, so a value that can't
// be encoded still becomes a 500. A 204, 205 or 304 has no body, whatever v is.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	return writeJSON(w, status, "application/json", v)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) error {
	switch status {
	case http.StatusNoContent, http.StatusResetContent, http.StatusNotModified:
		w.WriteHeader(status)
		return nil
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // nosniff keeps browsers from reading this as HTML
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the response: %w", err)
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if _, err := w.Write(body.Bytes()); err != nil {
		return fmt.Errorf("write the response: %w", err)
	}
	return nil
}

// Observe gives every request an id (X-Request-Id; the client's own if it is safe to log) and
// writes one log line when the request is done, with the cause if it failed. A panic becomes a 500,
// with its stack in the log; http.ErrAbortHandler is passed on to net/http.
//
// Make it the outermost handler. If middleware between it and the mux replaces the request, the log
// lacks the route; if middleware replaces w and adds no Unwrap method, requests are logged twice.
func Observe(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rep := &reply{ResponseWriter: w, request: r, id: requestID(r), start: time.Now()}
		w.Header().Set("X-Request-Id", rep.id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		defer rep.log(log) // runs last, whatever happens
		defer rep.answerPanic()
		next.ServeHTTP(rep, r)
	})
}

// reply is the ResponseWriter of an observed request, and collects the facts for its log line.
type reply struct {
	http.ResponseWriter
	request *http.Request
	id      string
	start   time.Time
	status  int   // 0 until the response has begun
	bytes   int64 // of the body
	err     error
	stack   []byte // of a panic

	aborted  bool // the request ends with http.ErrAbortHandler
	hijacked bool // the handler has taken over the connection
}

func (rep *reply) WriteHeader(status int) {
	rep.ResponseWriter.WriteHeader(status) // panics on an invalid status code
	if rep.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		rep.status = status // any other 1xx is only interim
	}
}

func (rep *reply) Write(p []byte) (int, error) {
	if rep.status == 0 {
		rep.status = http.StatusOK
	}
	n, err := rep.ResponseWriter.Write(p)
	if rep.request.Method != http.MethodHead { // net/http sends no body for HEAD
		rep.bytes += int64(n)
	}
	return n, err
}

// Flush calls FlushError, for code that expects an http.Flusher, such as SSE libraries.
func (rep *reply) Flush() { _ = rep.FlushError() }

// FlushError sends everything written so far, which begins the response. http.ResponseController
// calls it, and finds the methods that rep lacks through Unwrap.
func (rep *reply) FlushError() error {
	err := http.NewResponseController(rep.ResponseWriter).Flush()
	if rep.status == 0 && !errors.Is(err, http.ErrNotSupported) {
		rep.status = http.StatusOK
	}
	return err
}

// Hijack hands the connection over to the handler. After that, nothing can be sent through rep.
func (rep *reply) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(rep.ResponseWriter).Hijack()
	rep.hijacked = rep.hijacked || err == nil // a second call fails
	return conn, rw, err
}

// Unwrap lets http.ResponseController reach the ResponseWriter inside rep.
func (rep *reply) Unwrap() http.ResponseWriter { return rep.ResponseWriter }

// replyOf returns the reply inside any wrappers that middleware has added, or nil.
func replyOf(w http.ResponseWriter) *reply {
	for {
		switch t := w.(type) {
		case *reply:
			if t.id != "" {
				return t
			}
			w = t.ResponseWriter // t is an Endpoint's
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return nil
		}
	}
}

// clientGone reports whether the client has closed the connection.
func (rep *reply) clientGone() bool { return rep.request.Context().Err() != nil }

// answerPanic, when deferred, turns a panic into a 500.
func (rep *reply) answerPanic() {
	switch p := recover(); p {
	case nil:
	case http.ErrAbortHandler: // raised by a handler or by fail
		rep.aborted = true
		panic(p)
	default:
		rep.stack = debug.Stack()
		rep.fail(rep, fmt.Errorf("panic: %v", p), nil)
	}
}

// log writes the request's one log line.
func (rep *reply) log(log *slog.Logger) {
	r, status, level := rep.request, rep.status, slog.LevelInfo
	switch {
	case rep.aborted && rep.stack == nil && rep.clientGone():
		status = 499 // nginx's code for "client closed request"
	case rep.aborted, rep.hijacked && rep.err != nil:
		level = slog.LevelError
	case rep.hijacked: // only the handler knows the status
	case status == 0:
		status = http.StatusOK // net/http sends 200 if the handler wrote nothing
	}
	if status >= 500 {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method),
		slog.String("path", r.URL.Path),
		slog.String("route", r.Pattern[strings.IndexByte(r.Pattern, ' ')+1:]), // without the method
		slog.Int("status", status),
		slog.Int64("bytes", rep.bytes),
		slog.Duration("duration", time.Since(rep.start)),
		slog.String("request_id", rep.id),
	}
	if rep.hijacked {
		attrs = append(attrs, slog.Bool("hijacked", true))
	}
	if rep.err != nil {
		attrs = append(attrs, slog.Any("cause", rep.err))
	}
	if rep.stack != nil {
		attrs = append(attrs, slog.String("stack", string(rep.stack)))
	}
	log.LogAttrs(r.Context(), level, "request", attrs...)
}

// loggable matches ids that are safe: they can't forge a log line or a header.
var loggable = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); loggable.MatchString(id) {
		return id
	}
	return strconv.FormatUint(rand.Uint64()|1<<63, 16) // always 16 hex digits
}

// The second half reads input, the source of client errors. ReadJSON and ParseInt deliver valid
// input or an error that says what is wrong.

// FieldError describes one invalid part of a request, with loc and msg as in FastAPI.
type FieldError struct {
	Loc []string `json:"loc"` // the place, such as ["body", "input", "n"]
	Msg string   `json:"msg"`
}

// Invalid returns a 422 that lists the invalid fields.
func Invalid(fields ...FieldError) *HTTPError {
	details := make([]string, len(fields))
	for i, f := range fields {
		details[i] = strings.Join(f.Loc, ".") + " " + f.Msg
	}
	e := Errorf(http.StatusUnprocessableEntity, "%s", strings.Join(details, "; "))
	e.Fields = fields
	return e
}

// ParseInt parses value as a decimal integer, with or without a sign. If value is not one or does
// not fit in an int64, the error is a 422 that names loc, such as "path", "item_id".
func ParseInt(value string, loc ...string) (int64, error) {
	i, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, Invalid(FieldError{loc, "must be a 64-bit integer"})
	}
	return i, nil
}

// maxBody is the largest request body that ReadJSON accepts, in bytes.
const maxBody = 1 << 20

// ReadJSON decodes the request body, one JSON value, into v. Its errors become a 415 if the
// Content-Type is not application/json, a 413 if the body is over 1 MiB (unread if Content-Length
// says so), a 408 if it arrives too slowly, a 400 if it is incomplete or not JSON, and a 422 if it
// does not match v; see DecodeJSON.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return Errorf(http.StatusUnsupportedMediaType, "the Content-Type must be application/json")
	}
	if r.ContentLength > maxBody {
		// A client that sent Expect: 100-continue need not send its body.
		return &http.MaxBytesError{Limit: maxBody}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Errorf(http.StatusRequestTimeout, "the body did not arrive in time").Because(err)
	}
	if err != nil {
		return Errorf(http.StatusBadRequest, "the body could not be read in full").Because(err)
	}
	return DecodeJSON(body, v, "body")
}

// DecodeJSON decodes data, one JSON value in UTF-8, into the pointer v. Its errors are HTTPErrors
// that name loc: a 400 if data is not JSON in UTF-8; a 422 for null, the first value of the wrong
// type, or an unknown field (which encoding/json names without its enclosing objects); and a 422
// with all faults that v's method Validate() []FieldError finds, if it has one. If v is nil or not
// a pointer, the error becomes a 500.
func DecodeJSON(data []byte, v any, loc ...string) error {
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		e := Errorf(http.StatusBadRequest, "%s is not valid JSON", strings.Join(loc, "."))
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			e.Detail += fmt.Sprintf(": see byte %d", syntax.Offset)
		}
		return e.Because(err)
	}
	if !utf8.Valid(data) { // encoding/json would replace invalid bytes with U+FFFD
		return Errorf(http.StatusBadRequest, "%s is not valid UTF-8", strings.Join(loc, "."))
	}
	if string(bytes.TrimSpace(data)) == "null" { // encoding/json would leave v unchanged
		return Invalid(FieldError{loc, "must not be null"})
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if _, ok := errors.AsType[*json.InvalidUnmarshalError](err); ok {
			return err // v is nil or not a pointer, which is not the client's fault
		}
		return misfit(err, data, v, loc)
	}
	var fields []FieldError
	if v, ok := v.(interface{ Validate() []FieldError }); ok {
		for _, f := range v.Validate() {
			fields = append(fields, FieldError{slices.Concat(loc, f.Loc), f.Msg})
		}
	}
	if len(fields) > 0 {
		return Invalid(fields...)
	}
	return nil
}

// misfit restates encoding/json's error in JSON's terms, since clients don't know Go's. It is vague
// about a type that decodes its own JSON, such as a time, since more might not be true.
func misfit(err error, data []byte, v any, loc []string) *HTTPError {
	var place []string // below loc
	msg := noShape
	// Not errors.AsType: a wrapped error comes from a type that decodes its own JSON.
	if wrong, ok := err.(*json.UnmarshalTypeError); ok {
		names := slices.DeleteFunc(strings.SplitN(wrong.Field, ".", 32), func(name string) bool { return name == "" })
		if placed(wrong, names, data, v) {
			place, msg = names, mustBe(wrong.Type)
		}
	}
	// An unknown field's error has no type of its own, only this text: json: unknown field "x".
	if quoted, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		name, _ := strconv.Unquote(quoted)
		place, msg = []string{name}, "is not a known field"
	}
	for i, name := range place {
		place[i] = fmt.Sprintf("%.64s", name) // a name can be as long as the body
	}
	return Invalid(FieldError{slices.Concat(loc, place), msg}).Because(fmt.Errorf("%.300v", err))
}

// placed reports whether data has a value at wrong's place that gets the same error when it is
// decoded alone, and whether v takes a right value there. A type that decodes its own JSON may name a
// place inside itself, and Go 1.26 names a map or a list instead of the value in it.
func placed(wrong *json.UnmarshalTypeError, place []string, data []byte, v any) bool {
	value, right := data, examples[mustBe(wrong.Type)]
	for i, name := range place {
		var object map[string]json.RawMessage
		if json.Unmarshal(value, &object) != nil {
			return i > 0 && value[0] == '[' // in a list, whose indexes only Go 1.27 names
		}
		if value = object[name]; value == nil {
			return false
		}
	}
	for _, name := range slices.Backward(place) {
		right = fmt.Sprintf("{%q:%s}", name, right)
	}
	again, ok := json.Unmarshal(value, reflect.New(wrong.Type).Interface()).(*json.UnmarshalTypeError)
	first := bytes.TrimSpace(value)[0]
	return ok && again.Value == wrong.Value &&
		(first == '[') == (wrong.Value == "array") && (first == '{') == (wrong.Value == "object") &&
		json.Unmarshal([]byte(right), reflect.New(reflect.TypeOf(v).Elem()).Interface()) == nil
}

// examples has a value for each message of mustBe.
var examples = map[string]string{
	"must be a number": "0", "must be a string": `""`, "must be true or false": "true",
	"must be an integer within range": "0", "must be an array": "[]", "must be an object": "{}", noShape: "null",
}

const noShape = "does not have the right shape"

// mustBe names the JSON that decodes into a t. If t decodes its own JSON, only t knows.
func mustBe(t reflect.Type) string {
	p := reflect.PointerTo(t)
	switch k := t.Kind(); {
	case p.Implements(reflect.TypeFor[json.Unmarshaler]()), p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return noShape
	case k == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return noShape // []byte needs a string in base64
	case t == reflect.TypeFor[json.Number](), k == reflect.Float32, k == reflect.Float64:
		return "must be a number"
	case k == reflect.String:
		return "must be a string"
	case k == reflect.Bool:
		return "must be true or false"
	case k >= reflect.Int && k <= reflect.Uint64: // the ten integer kinds are consecutive
		return "must be an integer within range"
	case k == reflect.Slice || k == reflect.Array:
		return "must be an array"
	case k == reflect.Struct || k == reflect.Map:
		return "must be an object"
	}
	return noShape
}
