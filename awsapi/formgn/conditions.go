package formgn

// ConditionKeys implements [awsapi.KeyBringer]: who may have bundles collected need not be
// who may have agents upgraded.
func (v *StartAgentTaskForRehostRequest) ConditionKeys() map[string]string {
	return map[string]string{"mgn:TaskKind": string(v.Kind)}
}
