package export

// The numbers below are those of the NBD protocol specification, doc/proto.md
// of github.com/NetworkBlockDevice/nbd, section "Values"; their names are the
// specification's in Go's case. All integers travel in network byte order.

const (
	magicNBD        = 0x4e42444d41474943 // "NBDMAGIC"
	magicIHaveOpt   = 0x49484156454F5054 // "IHAVEOPT"; also leads every option
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags: NBD_FLAG_* of the server, NBD_FLAG_C_* of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags     = 1 << 0
	flagReadOnly     = 1 << 1
	flagSendFlush    = 1 << 2
	flagCanMultiConn = 1 << 8
	flagSendCache    = 1 << 10
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Option replies.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrInvalid  = 1<<31 + 3
	repErrUnknown  = 1<<31 + 6
	repErrTooBig   = 1<<31 + 9
)

// Information types of NBD_REP_INFO.
const (
	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

const cmdFlagReqOne = 1 << 3

// Structured replies.
const (
	replyFlagDone    = 1 << 0
	replyNone        = 0
	replyOffsetData  = 1
	replyOffsetHole  = 2
	replyBlockStatus = 5
	replyError       = 1<<15 + 1
)

// The base:allocation context and its states.
const (
	baseAllocation   = "base:allocation"
	baseAllocationID = 1
	stateHole        = 1 << 0
	stateZero        = 1 << 1
)

// An errno is an error number as NBD sends it; 0 is success.
type errno uint32

const (
	errPerm     errno = 1
	errIO       errno = 5
	errInvalid  errno = 22
	errOverflow errno = 75
)

// Limits that the server sets. The specification lets a client assume that 32
// MiB is allowed in one request; everything else only has to be generous enough
// for honest clients.
const (
	maxRequest     = 32 << 20
	maxName        = 4096 // the specification's limit for strings
	maxOption      = 2*maxName + 64
	maxOptions     = 128 // in one negotiation
	maxInFlight    = 16  // requests of one connection that are worked on
	maxDescriptors = 1024
	pieceSize      = 256 << 10 // what is read from a device and sent as one chunk
	preferredBlock = 64 << 10
)
