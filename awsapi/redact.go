package awsapi

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
)

// secretive are the words in names of members whose text is no one's business,
// whether or not the model says so.
var secretive = []string{"secret", "password", "token", "assertion", "privatekey", "authenticationcode", "credential", "authorization", "signature", "cookie"}

func isSecretive(name string) bool {
	name = strings.ToLower(name)
	for _, word := range secretive {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// redact is the value as JSON shows it, without what is secret. Two things make a
// text secret, each by itself: its type says so in logs (it is an [slog.LogValuer],
// as all sensitive types are), or it is anywhere in a member with a secretive name.
func redact(v any) any { return redacted(reflect.ValueOf(v), false) }

var (
	logValuer = reflect.TypeFor[slog.LogValuer]()
	marshaler = reflect.TypeFor[json.Marshaler]()
)

func redacted(v reflect.Value, hidden bool) any {
	if !v.IsValid() {
		return nil
	}
	if v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil
		}
		return redacted(v.Elem(), hidden)
	}
	if pointer := reflect.PointerTo(v.Type()); pointer.Implements(logValuer) {
		return addressed(v).(slog.LogValuer).LogValue().Resolve().String()
	} else if pointer.Implements(marshaler) {
		return marshaled(addressed(v), hidden)
	}
	switch v.Kind() {
	case reflect.String:
		// Keys have been put where a certificate's request belongs.
		if hidden && v.Len() > 0 || strings.Contains(v.String(), "PRIVATE KEY-----") {
			return Redacted
		}
		return v.String()
	case reflect.Struct:
		return redactedStruct(v, hidden)
	case reflect.Map:
		out := map[string]any{}
		for entry := v.MapRange(); entry.Next(); {
			name := entry.Key().String()
			out[name] = redacted(entry.Value(), hidden || isSecretive(name))
		}
		return out
	case reflect.Slice, reflect.Array:
		return redactedList(v, hidden)
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return v.Interface()
	}
	return Redacted // of what nobody knows
}

// addressed is a pointer to a copy, which has all methods.
func addressed(v reflect.Value) any {
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Interface()
}

func redactedStruct(v reflect.Value, hidden bool) any {
	out := map[string]any{}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !field.IsExported() || v.Field(i).IsZero() && (name == "-" || options != "" || v.Field(i).Kind() == reflect.Pointer) {
			continue
		}
		if name == "" || name == "-" { // "-" travels in path or query
			name = field.Name
		}
		out[name] = redacted(v.Field(i), hidden || isSecretive(name) || isSecretive(field.Name))
	}
	return out
}

func redactedList(v reflect.Value, hidden bool) any {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		return Redacted // bytes are never what somebody wants to read in a log
	}
	out := make([]any, v.Len())
	for i := range out {
		out[i] = redacted(v.Index(i), hidden)
	}
	return out
}

// marshaled is for types that say themselves how they travel.
func marshaled(v any, hidden bool) any {
	text, err := json.Marshal(v)
	var plain any
	if err != nil || json.Unmarshal(text, &plain) != nil {
		return Redacted
	}
	return redacted(reflect.ValueOf(plain), hidden)
}
