package store

const childEnv = "REHOST_STORE_TEST_CHILD"

func writeForEver() {}
