package identity

// A KeySealer seals the private keys of the certificate authority, with a key of
// its own derived from the sealing key. Safe for concurrent use.
type KeySealer struct{ key *SealingKey }

// Authority returns the sealer of the authority's keys.
func (k *SealingKey) Authority() KeySealer { return KeySealer{k} }

// Seal returns plain in the form of docs/format/session-token.md; it opens under
// the same use only.
func (s KeySealer) Seal(use string, plain []byte) []byte {
	return s.key.seal(useAuthority, use, plain)
}

// Open is the inverse of Seal. The error says no more than that it is not.
func (s KeySealer) Open(use string, sealed []byte) ([]byte, error) {
	plain, _, err := s.key.open(useAuthority, use, sealed)
	return plain, err
}
