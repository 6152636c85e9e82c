// Package policy reads policies in the language of AWS IAM and applies them.
//
// In comes the text of documents, out come [Document] values that were checked
// whole; in come the documents that concern a request, out comes a [Decision]
// that says why. Whatever the package does not understand in a document it
// refuses when the document is parsed and never while it is applied.
package policy
