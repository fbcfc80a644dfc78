package tlsconf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bsm/redislock"
)

// heldLock is a lock that this process holds, and renews until it is unlocked.
type heldLock struct {
	lock   *redislock.Lock
	cancel context.CancelFunc
	done   chan struct{}
	lost   atomic.Bool
}

var errRedisClosed = errors.New("redis: closed")

func (r *Redis) lockKey(name string) string { return r.prefix + "lock:" + name }

// Lock implements [certmagic.Locker]. It waits for as long as ctx lasts while another has the lock; that Redis cannot be asked
// is an error at once, and certmagic comes again.
//
// A lock lives for the time set and is renewed while it is held: a node that dies with it blocks the others for that time and
// no longer. A node that was only thought dead (it slept, or was cut off from Redis for longer) may still do what it held the
// lock for. certmagic has no way to hand on a fencing token, and bears such doubles: in the worst case two certificates are
// ordered, and the last one stored is shown by all.
func (r *Redis) Lock(ctx context.Context, name string) error {
	const shortest, longest = 20 * time.Millisecond, 200 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		got, err := r.TryLock(ctx, name)
		if got || err != nil {
			return err
		}
		wait := time.NewTimer(pause/2 + rand.N(pause)) // not all nodes at the same moment
		select {
		case <-ctx.Done():
			wait.Stop()
			return fmt.Errorf("redis %s: lock %s: %w", r.where, name, ctx.Err())
		case <-r.ctx.Done():
			wait.Stop()
			return errRedisClosed
		case <-wait.C:
		}
	}
}

// TryLock implements [certmagic.TryLocker].
func (r *Redis) TryLock(ctx context.Context, name string) (bool, error) {
	if r.ctx.Err() != nil {
		return false, errRedisClosed
	}
	var lock *redislock.Lock
	err := r.do(ctx, "lock "+name, func(ctx context.Context) (err error) {
		lock, err = r.locks.Obtain(ctx, r.lockKey(name), r.life, nil)
		return err
	})
	if errors.Is(err, redislock.ErrNotObtained) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h := &heldLock{lock: lock, done: make(chan struct{})}
	var renewing context.Context
	renewing, h.cancel = context.WithCancel(r.ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil { // closed meanwhile: the lock ends by itself
		h.cancel()
		return false, errRedisClosed
	}
	r.held[name] = append(r.held[name], h)
	r.wg.Go(func() {
		defer close(h.done)
		r.renew(renewing, name, h)
	})
	return true, nil
}

// renew keeps a lock alive until ctx ends or the lock is another's.
func (r *Redis) renew(ctx context.Context, name string, h *heldLock) {
	every := time.NewTicker(r.life / 3)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		err := r.refresh(ctx, h)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, redislock.ErrNotObtained):
			h.lost.Store(true)
			r.log.Warn().Str("lock", name).Msg("a lock was not renewed in time, and another node has it now: both may do the same work")
			return
		default:
			r.log.Warn().Err(err).Str("lock", name).Msg("a lock could not be renewed yet")
		}
	}
}

// refresh renews a lock. One that is gone without being another's, since Redis has forgotten it, is taken again.
func (r *Redis) refresh(ctx context.Context, h *heldLock) error {
	return r.do(ctx, "renew a lock", func(ctx context.Context) error {
		err := h.lock.Refresh(ctx, r.life, nil)
		if errors.Is(err, redislock.ErrNotObtained) {
			_, err = r.locks.Obtain(ctx, h.lock.Key(), r.life, &redislock.Options{Token: h.lock.Token()})
		}
		return err
	})
}

// RenewLockLease implements [certmagic.LockLeaseRenewer], by which certmagic learns that it has lost a lock. The length that
// it asks for, hours between two attempts at a certificate, is not granted: a dead node would block the others for as long,
// and a living one has its locks renewed anyway.
func (r *Redis) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	r.mu.Lock()
	locks := r.held[name]
	r.mu.Unlock()
	if len(locks) == 0 || locks[len(locks)-1].lost.Load() {
		return fmt.Errorf("redis %s: lock %s is not held here any more", r.where, name)
	}
	return r.refresh(ctx, locks[len(locks)-1])
}

// Unlock implements [certmagic.Locker]. A lock that has been lost in the meantime is unlocked as far as its holder is
// concerned.
func (r *Redis) Unlock(ctx context.Context, name string) error {
	r.mu.Lock()
	locks := r.held[name]
	if len(locks) == 0 {
		r.mu.Unlock()
		return fmt.Errorf("redis %s: unlock %s: it is not held here", r.where, name)
	}
	// Two of them are one that was lost, and one that another goroutine of this process has got since.
	i := max(0, slices.IndexFunc(locks, func(h *heldLock) bool { return h.lost.Load() }))
	h := locks[i]
	if locks = slices.Delete(slices.Clone(locks), i, i+1); len(locks) == 0 {
		delete(r.held, name)
	} else {
		r.held[name] = locks
	}
	r.mu.Unlock()
	h.cancel()
	<-h.done
	err := r.do(ctx, "unlock "+name, h.lock.Release)
	if errors.Is(err, redislock.ErrLockNotHeld) {
		return nil
	}
	return err
}
