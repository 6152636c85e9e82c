package fault

import "strings"

// Secret is the word that all of [Secrets] have in them.
const Secret = "PLANTED"

// Secrets are texts with a secret each, in the forms in which logs and configurations have
// them, for tests that look whether any comes out somewhere. What follows the last one in
// its file is taken for a part of it.
func Secrets() []string {
	// A key that is one for nobody but a pattern.
	const pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPLANTEDplantedPLANTEDplantedPLANTEDplantedPLANTEDplante\nPLANTEDabc==\n-----END EC PRIVATE KEY-----\n"
	return []string{
		`secret=PLANTED`, `"SecretAccessKey": "PLANTED/with+more"`, `X-Amz-Security-Token: PLANTED`, `aws_secret_access_key = PLANTED`,
		`password="PLANTED, with a comma and \" a quote PLANTED"`, `passwd: 'PLANTED of several words'`, `err="dial: password=\"PLANTED in quotes\" is wrong"`,
		`{"password":"a\"PLANTED"}`, `api_key: PLANTED`, `API-KEY=PLANTED`, `access_key=PLANTED`, `privateKey: PLANTED`, `db_password=PLANTED&x=1`,
		`Authorization: AWS4-HMAC-SHA256 Credential=PLANTED/20260101, SignedHeaders=host, Signature=PLANTED`, `got Bearer PLANTED.eyJ`, `passphrase = PLANTED`,
		`proxy http://user:PLANTED@proxy.example:3128/ is used`, `https://:PLANTED@host/`, `postgres://u:p@PLANTED@db/x`, `root=UUID=1 rd.luks.passphrase=PLANTED quiet`,
		`wJalrXUtnFEMI/K7MDENG/bPxRfiCYPLANTEDEXAMPLE`, `credentials=PLANTED`,
		pem, strings.ReplaceAll(pem, "\n", `\n`), pem[len(pem)-50:], pem[:len(pem)-60],
	}
}
