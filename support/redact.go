package support

import (
	"regexp"
	"strings"

	"rehost/awsapi"
)

// keys are private keys, whole or cut off at either end.
var keys = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)` +
	`|(?:[A-Za-z0-9+/=]|\\n|\s)*-----END [A-Z ]*PRIVATE KEY-----`)

// secrets are values of members, variables and headers whose names say that they are secret,
// and passwords in URLs. Too much is better than too little.
var secrets = regexp.MustCompile(`(?i:authorization)\\?["']?\s*[=:]\s*[^\r\n]+|(?i:bearer)\s+[\w.~+/=-]+` +
	`|(?i:secret|token|passw(?:or)?d|passphrase|signature|credential|(?:api|access|private)[_-]?key)[\w-]*\\?["']?\s*[=:]\s*` +
	`(?:"(?:[^"\\]|\\(?s:.))*|\\"(?:[^"\\]|\\[^"])*|'[^']*|[^\s"',&]+)` +
	`|://[^\s/@:"']*:[^\s"']+@`)

// random is what looks like keys and tokens by itself. It is looked for last: it can end with
// what is the name of a secret.
var random = regexp.MustCompile(`[A-Za-z0-9/+]{40,}={0,2}`)

// Redact takes secrets out of a text that is to leave the machine.
func Redact(text string) string {
	if strings.Contains(text, "PRIVATE KEY-----") {
		text = keys.ReplaceAllString(text, awsapi.Redacted)
	}
	return random.ReplaceAllString(secrets.ReplaceAllString(text, awsapi.Redacted), awsapi.Redacted)
}
