package tlsconf

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bsm/redislock"
	"github.com/caddyserver/certmagic"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/rs/zerolog"
)

const (
	redisPrefix  = "autodgate"
	redisPort    = "6379"
	redisTimeout = 5 * time.Second
	lockLife     = 20 * time.Second
)

// StorageOptions are the settings of [OpenStorage] and of [NewRedis]. What is equal opens the same storage.
type StorageOptions struct {
	// URL is a directory (for OpenStorage alone; nothing else then counts), redis://[user@]host[:port][/database], rediss://… for the same over TLS, or unix://[user@]/path[?db=database].
	URL string
	// CA is a PEM file with what vouches for the server of a rediss URL; "": the CAs of the system.
	CA string
	// PasswordFile holds the password in its first line. It is read for each new connection, so a new password needs no restart.
	PasswordFile string
	// KeyFile holds a secret of at least 32 characters that all nodes have. With it, what is stored is encrypted and cannot be
	// forged by whoever has access to Redis.
	KeyFile string
	// Prefix stands, with a colon, before every key; "" is "autodgate".
	Prefix string
	// LockLife is for how long a lock outlives a node that died with it; 0 is 20 s.
	LockLife time.Duration
	// Timeout is how long one operation may take, all its attempts together; 0 is 5 s.
	Timeout time.Duration
}

// Redis is storage that several nodes share. It is a [certmagic.Storage] with locks, and it lets nodes agree on a value
// ([Redis.Agree]). One Redis server (or a service that looks like one) is meant: the atomicity relied on here is not that of
// a Redis Cluster.
//
// Under the prefix there are: file:KEY, a hash for each stored key; index, a sorted set of these keys, since asking Redis for
// keys by pattern looks at every key there is; lock:NAME; shared:NAME, the values agreed on.
type Redis struct {
	client  *redis.Client
	where   string // for errors and logs; no password is in it
	prefix  string
	aead    cipher.AEAD // nil: stored as it is
	timeout time.Duration
	log     zerolog.Logger
	silent  atomic.Int64 // when it last gave no answer, in Unix milliseconds; 0 after an answer

	locks  *redislock.Client
	life   time.Duration
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the goroutines that renew locks
	mu     sync.Mutex
	held   map[string][]*heldLock
}

var (
	_ certmagic.Storage          = (*Redis)(nil)
	_ certmagic.TryLocker        = (*Redis)(nil)
	_ certmagic.LockLeaseRenewer = (*Redis)(nil)
)

// NewRedis prepares storage on Redis. Nothing is connected yet; the error is about the settings and the files in them. Close
// it after the last use.
func NewRedis(o StorageOptions, log zerolog.Logger) (*Redis, error) {
	ro, err := redisClientOptions(o)
	if err != nil {
		return nil, err
	}
	r := &Redis{
		where: ro.Addr, prefix: redisPrefix + ":", timeout: redisTimeout, life: lockLife,
		log: log.With().Str("redis", ro.Addr).Logger(), held: map[string][]*heldLock{},
	}
	if o.Prefix != "" {
		r.prefix = o.Prefix + ":"
	}
	if o.Timeout > 0 {
		r.timeout = o.Timeout
	}
	if o.LockLife > 0 {
		r.life = o.LockLife
	}
	if o.KeyFile != "" {
		if r.aead, err = storageAEAD(o.KeyFile); err != nil {
			return nil, err
		}
	}
	// The library reports every failed attempt on stderr, for all clients of the process. What comes of the attempts is in
	// the errors returned here.
	redis.SetLogger(quiet{})
	r.client = redis.NewClient(ro)
	r.locks = redislock.New(r.client)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// ParseRedisURL reads where Redis is: the network (tcp or unix), the address, the user ("" is the default one), the number
// of the database, and whether TLS is spoken. A password is an error: URLs are shown and copied.
func ParseRedisURL(s string) (network, address, user string, database int, secure bool, err error) {
	const forms = "redis://[user@]host[:port][/database], rediss://… or unix://[user@]/path[?db=database]"
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s; the forms are %s", fmt.Sprintf(format, args...), forms)
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", "", "", 0, false, fail("not a URL of a Redis server") // the cause would quote it, with the password perhaps
	}
	if _, has := u.User.Password(); has {
		return "", "", "", 0, false, errors.New("there is a password in the URL, which is shown and copied; put it into a file of its own")
	}
	user = u.User.Username()
	number := strings.TrimPrefix(u.Path, "/")
	query := u.Query()
	switch u.Scheme {
	case "redis", "rediss":
		if u.Hostname() == "" {
			return "", "", "", 0, false, fail("no host in the URL")
		}
		port := u.Port()
		if port == "" {
			port = redisPort
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", "", "", 0, false, fail("%q is no port", port)
		}
		network, address, secure = "tcp", net.JoinHostPort(u.Hostname(), port), u.Scheme == "rediss"
	case "unix":
		if u.Host != "" || u.Path == "" || u.Path == "/" {
			return "", "", "", 0, false, fail("no absolute path of a socket in the URL")
		}
		network, address, number = "unix", u.Path, query.Get("db")
		query.Del("db")
	default:
		return "", "", "", 0, false, fail("%q is no scheme for Redis", u.Scheme)
	}
	if len(query) > 0 || u.Fragment != "" {
		return "", "", "", 0, false, fail("the URL takes no such parameters")
	}
	if number != "" {
		if database, err = strconv.Atoi(number); err != nil || database < 0 {
			return "", "", "", 0, false, fail("%q is no number of a database", number)
		}
	}
	return network, address, user, database, secure, nil
}

func redisClientOptions(o StorageOptions) (*redis.Options, error) {
	network, address, user, database, secure, err := ParseRedisURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	timeout := redisTimeout
	if o.Timeout > 0 {
		timeout = o.Timeout
	}
	ro := &redis.Options{
		Network: network, Addr: address, Username: user, DB: database,
		// A dead server costs at most the timeout of an operation; these only see to it that there is more than one attempt.
		DialTimeout: timeout / 2, ReadTimeout: timeout / 2, WriteTimeout: timeout / 2, DialerRetries: 1,
		MaxRetries: 3, MinRetryBackoff: 20 * time.Millisecond, MaxRetryBackoff: 500 * time.Millisecond,
		ContextTimeoutEnabled: true,
		PoolSize:              8, ConnMaxIdleTime: 5 * time.Minute,
		// Neither is of use here, and users of Redis with few rights may not ask.
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if o.PasswordFile != "" {
		if _, err := readSecret("password", o.PasswordFile); err != nil {
			return nil, err
		}
		ro.CredentialsProviderContext = func(context.Context) (string, string, error) {
			password, err := readSecret("password", o.PasswordFile)
			return user, password, err
		}
	}
	switch {
	case secure:
		host, _, _ := net.SplitHostPort(address)
		ro.TLSConfig = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		if o.CA != "" {
			if ro.TLSConfig.RootCAs, err = LoadRoots(o.CA); err != nil {
				return nil, err
			}
		}
	case o.CA != "":
		return nil, errors.New("redis: a CA is only of use with a rediss:// URL")
	}
	return ro, nil
}

// readSecret returns the first line of a file.
func readSecret(what, file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return "", fmt.Errorf("%s %s cannot be read: %w", what, file, err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("%s %s: the first line is empty", what, file)
	}
	return line, nil
}

// storageAEAD makes the cipher for what is stored from the secret in a file.
func storageAEAD(file string) (cipher.AEAD, error) {
	secret, err := readSecret("storage key", file)
	if err != nil {
		return nil, err
	}
	if len(secret) < 32 {
		return nil, fmt.Errorf("storage key %s: shorter than 32 characters; `openssl rand -base64 32` makes a good one", file)
	}
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "autodgate storage v1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// sealMark begins what is encrypted.
const sealMark = "autodgate-sealed-1\x00"

// seal encrypts a value for the key it is stored under, so that values cannot be exchanged for one another either.
func (r *Redis) seal(key string, value []byte) []byte {
	if r.aead == nil {
		return value
	}
	return r.aead.Seal([]byte(sealMark), nil, value, []byte(key))
}

func (r *Redis) unseal(key string, stored []byte) ([]byte, error) {
	sealed, is := strings.CutPrefix(string(stored), sealMark)
	switch {
	case r.aead == nil && is:
		return nil, fmt.Errorf("redis %s: %s is encrypted, and no storage key is set here", r.where, key)
	case r.aead == nil:
		return stored, nil
	case !is:
		return nil, fmt.Errorf("redis %s: %s is not encrypted, though a storage key is set: remove it from Redis to have it made anew", r.where, key)
	}
	value, err := r.aead.Open(nil, nil, []byte(sealed), []byte(key))
	if err != nil {
		return nil, fmt.Errorf("redis %s: %s cannot be decrypted: another storage key, or somebody has changed it", r.where, key)
	}
	return value, nil
}

// String says where it is.
func (r *Redis) String() string { return "redis " + r.where }

// do runs an operation within the time there is for one, and makes its error one that says what was tried and where.
func (r *Redis) do(ctx context.Context, what string, op func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	err := op(limited)
	if limited.Err() == nil {
		r.silent.Store(0)
	} else if errors.Is(limited.Err(), context.DeadlineExceeded) {
		r.silent.Store(time.Now().UnixMilli())
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.Nil):
		return fmt.Errorf("redis %s: %s: %w", r.where, what, fs.ErrNotExist)
	case errors.Is(ctx.Err(), context.Canceled):
		err = ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("redis %s: %s: no answer in time: %w", r.where, what, limited.Err())
	}
	hint := ""
	for prefix, text := range map[string]string{
		"NOAUTH": "it wants a password: storage_password_file", "WRONGPASS": "look at storage_password_file and at the user in the URL",
		"NOPERM": "the user in the URL lacks rights", "EXECABORT": "the user in the URL lacks rights, or its memory is full", "OOM": "its memory is full", "READONLY": "it is a replica",
		"MISCONF": "it cannot write to its disk",
	} {
		if redis.HasErrorPrefix(err, prefix) {
			hint = " (" + text + ")"
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		// A socket or a password file that is not there must not pass for a key that is not: certmagic would order a new
		// certificate.
		err = errors.New(err.Error())
	}
	return fmt.Errorf("redis %s: %s: %w%s", r.where, what, err, hint)
}

// patience is how long somebody should wait for an answer who can do without one: hardly at all if there was none a moment
// ago, so that many who ask one after the other do not all wait.
func (r *Redis) patience(usual time.Duration) time.Duration {
	const moment = 10 * time.Second
	if time.Since(time.UnixMilli(r.silent.Load())) < moment {
		return min(usual, 100*time.Millisecond)
	}
	return min(usual, r.timeout)
}

// Ping asks whether Redis is there and lets us in.
func (r *Redis) Ping(ctx context.Context) error {
	return r.do(ctx, "ping", func(ctx context.Context) error { return r.client.Ping(ctx).Err() })
}

// Now is the time by Redis's clock, which is the same for all nodes.
func (r *Redis) Now(ctx context.Context) (now time.Time, err error) {
	err = r.do(ctx, "time", func(ctx context.Context) error {
		now, err = r.client.Time(ctx).Result()
		return err
	})
	return now, err
}

// Close releases the locks that are still held, so that no other node waits for their end, and disconnects.
func (r *Redis) Close() error {
	r.mu.Lock()
	r.cancel()
	held := r.held
	r.held = map[string][]*heldLock{}
	r.mu.Unlock()
	r.wg.Wait()
	for name, locks := range held {
		for _, h := range locks {
			err := r.do(context.Background(), "release "+name, h.lock.Release)
			if err != nil && !errors.Is(err, redislock.ErrLockNotHeld) {
				r.log.Debug().Err(err).Str("lock", name).Msg("lock not released: it ends by itself")
			}
		}
	}
	return r.client.Close()
}

// clean makes a key of the form that certmagic prescribes.
func clean(key string) string { return strings.TrimPrefix(path.Clean("/"+key), "/") }

func (r *Redis) file(key string) string { return r.prefix + "file:" + key }
func (r *Redis) index() string          { return r.prefix + "index" }

var errNoKey = errors.New("redis: no key given")

// Store implements [certmagic.Storage].
func (r *Redis) Store(ctx context.Context, key string, value []byte) error {
	if key = clean(key); key == "" {
		return errNoKey
	}
	sealed := r.seal("file:"+key, value)
	return r.do(ctx, "store "+key, func(ctx context.Context) error {
		_, err := r.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.HSet(ctx, r.file(key), "value", sealed, "size", len(value), "modified", time.Now().UnixMilli())
			p.ZAdd(ctx, r.index(), redis.Z{Member: key})
			return nil
		})
		return err
	})
}

// Load implements [certmagic.Storage].
func (r *Redis) Load(ctx context.Context, key string) ([]byte, error) {
	key = clean(key)
	var stored []byte
	err := r.do(ctx, "load "+key, func(ctx context.Context) (err error) {
		stored, err = r.client.HGet(ctx, r.file(key), "value").Bytes()
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.unseal("file:"+key, stored)
}

// deleteTree removes a key and everything below it in one step, so that nothing is stored in between.
var deleteTree = redis.NewScript(`
for _, key in ipairs(redis.call("zrangebylex", KEYS[1], "[" .. ARGV[2] .. "/", "(" .. ARGV[2] .. "0")) do
	redis.call("del", ARGV[1] .. key)
	redis.call("zrem", KEYS[1], key)
end
redis.call("del", ARGV[1] .. ARGV[2])
redis.call("zrem", KEYS[1], ARGV[2])
return 0`)

// Delete implements [certmagic.Storage].
func (r *Redis) Delete(ctx context.Context, key string) error {
	if key = clean(key); key == "" {
		return errNoKey
	}
	return r.do(ctx, "delete "+key, func(ctx context.Context) error {
		return deleteTree.Run(ctx, r.client, []string{r.index()}, r.file(""), key).Err()
	})
}

// Exists implements [certmagic.Storage].
func (r *Redis) Exists(ctx context.Context, key string) bool {
	_, err := r.Stat(ctx, key)
	return err == nil
}

// below is the range of the index with everything below a directory; '0' follows '/'.
func below(dir string) (from, to string) {
	if dir == "" {
		return "-", "+"
	}
	return "[" + dir + "/", "(" + dir + "0"
}

// List implements [certmagic.Storage]. As with files, directories are among the keys.
func (r *Redis) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	dir = clean(dir)
	from, to := below(dir)
	var members []string
	err := r.do(ctx, "list "+dir, func(ctx context.Context) (err error) {
		members, err = r.client.ZRangeArgs(ctx, redis.ZRangeArgs{Key: r.index(), Start: from, Stop: to, ByLex: true}).Result()
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(members) == 0 {
		if info, err := r.Stat(ctx, dir); err != nil || !info.IsTerminal {
			return nil, fmt.Errorf("redis %s: list %s: %w", r.where, dir, fs.ErrNotExist)
		}
	}
	var keys []string
	for _, m := range members {
		rest := strings.TrimPrefix(strings.TrimPrefix(m, dir), "/")
		for i := 0; i <= len(rest); i++ {
			if i < len(rest) && rest[i] != '/' {
				continue
			}
			keys = append(keys, path.Join(dir, rest[:i]))
			if !recursive {
				break
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// Stat implements [certmagic.Storage].
func (r *Redis) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	key = clean(key)
	info := certmagic.KeyInfo{Key: key}
	from, to := below(key)
	err := r.do(ctx, "stat "+key, func(ctx context.Context) error {
		var fields *redis.SliceCmd
		var children *redis.IntCmd
		_, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			fields = p.HMGet(ctx, r.file(key), "size", "modified")
			children = p.ZLexCount(ctx, r.index(), from, to)
			return nil
		})
		if err != nil {
			return err
		}
		values := fields.Val()
		size, is := values[0].(string)
		switch {
		case is:
			info.IsTerminal = true
			info.Size, _ = strconv.ParseInt(size, 10, 64)
			if text, is := values[1].(string); is {
				ms, _ := strconv.ParseInt(text, 10, 64)
				info.Modified = time.UnixMilli(ms)
			}
		case children.Val() == 0:
			return redis.Nil
		}
		return nil
	})
	return info, err
}

func (r *Redis) shared(name string) string { return r.prefix + "shared:" + name }

// Agree returns the value that all nodes have under a name: the one that is there, else mine, which all others get from then
// on. It is kept for the given time, 0 is for ever. With mine nil nothing is stored, and the error is fs.ErrNotExist if
// nothing is there.
func (r *Redis) Agree(ctx context.Context, name string, mine []byte, life time.Duration) ([]byte, error) {
	what := "agree on " + name
	var stored []byte
	err := r.do(ctx, what, func(ctx context.Context) (err error) {
		for range 3 { // it may end between the two questions
			if mine != nil {
				if err = r.client.SetNX(ctx, r.shared(name), r.seal("shared:"+name, mine), life).Err(); err != nil {
					return err
				}
			}
			stored, err = r.client.Get(ctx, r.shared(name)).Bytes()
			if mine == nil || !errors.Is(err, redis.Nil) {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.unseal("shared:"+name, stored)
}
