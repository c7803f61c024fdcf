/* The hand-over between three hosts and two buckets, for spin.  README.md says what is left out.

   One tick is one period.  Every awake host sends once per tick, and at once whenever what it says
   changes; within a tick hosts act and frames arrive in every order.  Faults come at any moment,
   as many as the budgets below allow.  Names follow convergence/*.py. */

#ifndef TOLERANCE
#define TOLERANCE 3     /* T */
#endif
#ifndef PAUSES
#define PAUSES 1        /* how often a host stops: it may wake, be restarted, or stay dead */
#endif
#ifndef LOSSES
#define LOSSES 1        /* frames lost on the way to one host */
#endif
#ifndef MUTES
#define MUTES 0         /* how often a host's frames reach nobody, for as long as it may be */
#endif
#ifndef LEASE
#define LEASE (TOLERANCE - 1)
#endif
#ifndef EMBARGO
#define EMBARGO 2
#endif

#define N 3
#define ALL 3           /* both buckets */
#define CODES 4
#define OLD 9           /* ages are counted up to here */
#define DEATH TOLERANCE
#define NONE 7          /* no snapshot, no target */

/* phases */
#define UNKNOWN 0
#define CONVERGING1 1
#define STABLE1 2
#define CONVERGING2 3
#define STABLE2 4
#define CONVERGED 5

typedef Record {        /* what a host knows of another one: its newest frame, and when */
  bit known; byte code; bit joining; bit newcomer; byte generation; short view;
  byte phase; byte current; byte ready;
  byte tag[N];          /* whom it hears, and as what */
  byte age;             /* of its newest frame */
  byte since;           /* heard without a longer silence */
  byte heard_me;        /* age of my newest frame that it heard */
  byte vouched;         /* age of its newest frame that the third host heard, by that one's word */
  byte old_current; byte old_age   /* a member that was restarted since: what it held, its age */
};
typedef Row { Record about[N] };
typedef Frame {         /* on its way; a newer one of the same host overtakes it */
  byte code; bit joining; bit newcomer; byte generation; short view;
  byte phase; byte current; byte ready; byte tag[N]; byte ages[N]; byte age; bit to[N]
};

bit up[N]; byte asleep[N]; bit due[N]; bit mute[N];
byte code[N]; bit joining[N]; bit newcomer[N]; byte listened[N];
short view[N]; byte generation[N]; byte phase[N];
byte current[N]; byte ready[N]; byte goal[N];
byte known_heard[N]; bit two_view[N]; byte two_sent[N]; bit distrust[N]; byte embargo[N];
byte established[N];    /* ticks since it first said that it is no newcomer */
Row heard[N];
Frame frame[N];
byte pauses = PAUSES; byte losses = LOSSES; byte mutes = MUTES;
bit owes[N]; bit unsaid[N];   /* it has something to say; nobody has heard its generation */
bit started;            /* once all were Converged: only then do faults begin, unless FROM_START */
byte calm;              /* ticks since the last fault */
byte order[N];          /* in which the hosts' periods end within a tick */
bit converged;          /* all awake hosts are, with each other, and every bucket has its owner */

/* scratch of one step, no part of the state */
hidden byte a; hidden byte b; hidden byte c; hidden byte m; hidden byte n; hidden byte o;
hidden byte p; hidden byte q; hidden byte yes; hidden byte no; hidden byte dirty; hidden byte stop;
hidden byte accepts[N]; hidden byte share[N]; hidden byte held[N]; hidden byte got[N];

#define REC(i,j)      heard[i].about[j]
#define CODE_IN(v,h)  (((v) >> (4 * (h))) & 15)
#define ME(i)         ((code[i] + 1) << (4 * (i)))
#define IN(v,h)       (CODE_IN(v,h) != 0)
#define MEMBER(i,j)   (REC(i,j).known && CODE_IN(view[i],j) == REC(i,j).code + 1)
#define TAG(cd,jn)    (1 + 2 * (cd) + (jn))
#define MY_TAG(i)     TAG(code[i], joining[i])
#define TAG_OF(i,j)   TAG(REC(i,j).code, REC(i,j).joining)
#define THIRD(i,j)    (3 - (i) - (j))
#define OTHERS(i,v)   ((v) & ~(15 << (4 * (i))))
#define BOTH(i,j)     ((15 << (4 * (i))) | (15 << (4 * (j))))
#define FIRST(bits)   (((bits) & 1) -> 1 : (bits))
#define FIRST_OF(set) (((set) & 1) -> 0 : (((set) & 2) -> 1 : 2))
#define COUNT(bits)   (((bits) & 1) + ((bits) >> 1))
#define LEAST(x,y)    (((x) < (y)) -> (x) : (y))
#define MOST(x,y)     (((x) > (y)) -> (x) : (y))
/* A newcomer waits no longer than T x P for a host that it heard as a newcomer. */
#define HEARD_ESTABLISHED(i,j) (!newcomer[i] && REC(i,j).heard_me <= established[i])
/* A newcomer that hears me tells when, only I did not hear it before. */
#define SINCE(i,j)    ((frame[j].newcomer && frame[j].tag[i] == MY_TAG(i)) -> OLD : frame[j].age)
#define OLDER(x)      x = LEAST((x) + 1, OLD)

/* No member beside me, or only one that was restarted since. */
inline is_alone(i) {
  o = 0; n = 0;
  for (a : 0 .. N - 1) {
    if :: a != i && IN(view[i], a) -> n++; if :: MEMBER(i, a) -> o = 1 :: else fi :: else fi
  }
  yes = (n == 0 || (n == 1 && !o))
}

/* q = quarters of a period for which being heard does not count any more, 0 while it does, when
   the newest input came x ticks ago. */
inline lapsed(i, x) {
  is_alone(i);
  q = 0;
  if
  :: !yes ->
     m = 4 * LEASE + (two_view[i] -> 4 * EMBARGO + 1 : 0);
     n = 4 * (known_heard[i] - x);
     if :: n >= m -> q = n - m + 1 :: else fi
  :: else ->
     for (a : 0 .. N - 1) {
       if
       :: a != i && REC(i, a).known && REC(i, a).age < DEATH ->
          /* alone: whoever may come to serve beside me counts */
          n = 4 * REC(i, a).heard_me;
          if
          :: HEARD_ESTABLISHED(i, a) -> n = (n > 4 * EMBARGO + 1 -> n - 4 * EMBARGO - 1 : 0)
          :: else
          fi;
          n = LEAST(n, 4 * REC(i, a).since);
          n = (n > 4 * x -> n - 4 * x : 0);
          if :: n >= 4 * LEASE -> q = MOST(q, n - 4 * LEASE + 1) :: else fi
       :: else
       fi
     }
  fi;
#ifdef NO_KNOWN_HEARD
  q = 0
#endif
}

/* The generation of a changed view: one that was heard and not said yet is as good as a new one. */
#define NEXT(i) (unsaid[i] -> generation[i] : generation[i] + 1)

inline restart(i, g) {
  if :: g > generation[i] -> unsaid[i] = 1 :: else fi;
  generation[i] = g; ready[i] = NONE; goal[i] = NONE; phase[i] = CONVERGING1; dirty = 1
}

inline afresh(i) {
  code[i] = (code[i] + 1) % CODES; joining[i] = 1; newcomer[i] = 1; listened[i] = 0;
  view[i] = ME(i); phase[i] = UNKNOWN; current[i] = 0; ready[i] = NONE; goal[i] = NONE;
  two_view[i] = 0; dirty = 1
}

inline send(i) {
  owes[i] = 0; unsaid[i] = 0;
  frame[i].code = code[i]; frame[i].joining = joining[i]; frame[i].newcomer = newcomer[i];
  frame[i].generation = generation[i]; frame[i].view = view[i]; frame[i].phase = phase[i];
  frame[i].current = current[i]; frame[i].ready = ready[i]; frame[i].age = 0;
  n = 0;
  for (a : 0 .. N - 1) {
    frame[i].tag[a] = 0; frame[i].ages[a] = 0;
    if
    :: a != i ->
       if
       :: REC(i, a).known && REC(i, a).age < DEATH ->
          frame[i].tag[a] = TAG_OF(i, a); frame[i].ages[a] = REC(i, a).age
       :: else
       fi;
       if :: IN(view[i], a) -> n++ :: else fi;
       frame[i].to[a] = !mute[i]
    :: else
    fi
  }
  if :: n == 1 -> two_sent[i] = 0 :: else fi;
  if :: newcomer[i] -> established[i] = 0 :: else fi;
  dirty = 0
}

/* ------------------------------------------------------------------ phases */

/* no = 1: a newcomer waits for a host that it should be a member with. */
inline must_wait(i) {
  no = 0; n = 1; m = N;
  for (a : 0 .. N - 1) {
    if
    :: IN(view[i], a) ->
       m = LEAST(m, a);
       if :: a != i && MEMBER(i, a) && !REC(i, a).newcomer -> n = 0 :: else fi
    :: else
    fi
  }
  for (a : 0 .. N - 1) {
    if
    :: a != i && REC(i, a).known && !MEMBER(i, a) &&
       REC(i, a).age < DEATH + (REC(i, a).newcomer -> 0 : EMBARGO) ->
       o = THIRD(i, a);
       if
       :: OTHERS(i, view[i]) == 0 && REC(i, a).tag[o] != 0 &&
          (!REC(i, o).known || REC(i, o).age >= DEATH) -> no = 1
       :: else
       fi;
       if
       :: REC(i, a).tag[i] != MY_TAG(i) ->
          if
          :: OTHERS(i, view[i]) == 0 || REC(i, a).tag[i] == TAG(code[i], !joining[i]) -> no = 1
          :: else
          fi
       :: else ->
          if
          :: !REC(i, a).joining && (!REC(i, a).newcomer || (n && a < m)) -> no = 1
          :: else
          fi
       fi
    :: else
    fi
  }
}

/* goal[i]: every member keeps up to its quota, the rest goes to the lowest ids. */
inline compute_goal(i) {
  n = 0;
  for (a : 0 .. N - 1) {
    held[a] = 0; got[a] = 0;
    if
    :: IN(view[i], a) -> n++; held[a] = (a == i -> ready[i] : REC(i, a).ready)
    :: else
    fi
  }
  for (a : 0 .. N - 1) { share[a] = (IN(view[i], a) -> ALL - 1 : 0) / n }
  p = (n == 3 -> 2 : 0);
  for (c : 0 .. 2) {            /* n = 3: those who hold two, then one, then none */
    for (a : 0 .. N - 1) {
      if
      :: p > 0 && COUNT(held[a]) == 2 - c -> share[a] = 1; p--
      :: else
      fi
    }
  }
  p = ALL;
  for (a : 0 .. N - 1) {
    m = held[a] & p;
    if
    :: share[a] == 0 -> m = 0
    :: share[a] == 1 -> m = FIRST(m)
    :: else
    fi;
    got[a] = m; p = p & ~m
  }
  for (a : 0 .. N - 1) {
    if
    :: COUNT(got[a]) < share[a] ->
       m = (share[a] - COUNT(got[a]) == 2 -> p : FIRST(p));
       got[a] = got[a] | m; p = p & ~m
    :: else
    fi
  }
  goal[i] = got[i]
}

/* yes = 1: every other member's newest frame shows my generation, my view and at least phase x. */
inline all_at(i, x) {
  yes = 1;
  for (a : 0 .. N - 1) {
    if
    :: a != i && IN(view[i], a) &&
       !(MEMBER(i, a) && REC(i, a).generation == generation[i] && REC(i, a).view == view[i] &&
            REC(i, a).phase >= x) -> yes = 0
    :: else
    fi
  }
}

inline advance(i) {
  all_at(i, UNKNOWN);
  if
  :: phase[i] == CONVERGING1 && yes ->
     no = 0;
     if :: newcomer[i] -> must_wait(i) :: else fi;
     if :: !no -> ready[i] = current[i]; phase[i] = STABLE1; dirty = 1 :: else fi
  :: else
  fi;
  all_at(i, STABLE1);
  if
  :: phase[i] == STABLE1 && yes ->
     compute_goal(i);
     current[i] = current[i] & goal[i]; phase[i] = CONVERGING2; dirty = 1
  :: else
  fi;
  if
  :: phase[i] == CONVERGING2 ->
     p = 0;
#ifndef TAKE_AT_ONCE
     for (a : 0 .. N - 1) {
       if
       :: a != i && MEMBER(i, a) -> p = p | REC(i, a).current
       :: a != i && IN(view[i], a) && !MEMBER(i, a) -> p = p | REC(i, a).old_current
       :: else
       fi
     }
#endif
     m = goal[i] & ~current[i] & ~p;
     if
     :: m && embargo[i] == 0 -> current[i] = current[i] | m; newcomer[i] = 0; dirty = 1
     :: else
     fi;
     if :: current[i] == goal[i] -> phase[i] = STABLE2; dirty = 1 :: else fi
  :: else
  fi;
  all_at(i, STABLE2);
  if
  :: phase[i] == STABLE2 && yes -> phase[i] = CONVERGED; newcomer[i] = 0; dirty = 1
  :: else
  fi
}

/* ------------------------------------------------------------------ members */

inline set_hears(i, j, mask) {     /* whom j hears under the codes that I know */
  mask = (REC(i, j).tag[i] == MY_TAG(i) -> (1 << (i)) : 0);
  if
  :: REC(i, THIRD(i, j)).known && REC(i, j).tag[THIRD(i, j)] == TAG_OF(i, THIRD(i, j)) ->
     mask = mask | (1 << THIRD(i, j))
  :: else
  fi
}

inline admit(i) {
  is_alone(i); no = yes;
  c = 7; p = 0; q = 0; m = 1 << (i);      /* common, replaced, found, members */
  for (a : 0 .. N - 1) {
    if
    :: a != i && IN(view[i], a) ->
       m = m | (1 << a);
       if :: MEMBER(i, a) -> set_hears(i, a, o); c = c & o :: else -> p = p | (1 << a) fi
    :: else
    fi
  }
  b = NEXT(i); n = 0;
  for (a : 0 .. N - 1) {
    if
    :: a != i && REC(i, a).known && !MEMBER(i, a) && !REC(i, a).joining &&
       (c & (1 << a)) && !(p & ~(1 << a)) && REC(i, a).age < 2 &&
       (!IN(view[i], a) || REC(i, a).old_age >= 2) ->
       set_hears(i, a, o);
       if
       :: (o & m & ~(1 << a)) == (m & ~(1 << a)) ->
          /* a newcomer waits while members converge, unless a member let it in */
          yes = (newcomer[i] || !REC(i, a).newcomer || phase[i] == CONVERGED ||
                 (MEMBER(i, THIRD(i, a)) &&
                     CODE_IN(REC(i, THIRD(i, a)).view, a) == REC(i, a).code + 1));
          if
          :: yes ->
             m = m | (1 << a); p = p & ~(1 << a); c = c & o; q = q | (1 << a);
             b = MOST(b, REC(i, a).generation + 1);
             n = MOST(n, LEAST(REC(i, a).since, REC(i, a).heard_me))
          :: else
          fi
       :: else
       fi
    :: else
    fi
  }
  if
  :: q ->
     for (a : 0 .. N - 1) {
       if
       :: q & (1 << a) ->
          view[i] = (view[i] & ~(15 << (4 * a))) | ((REC(i, a).code + 1) << (4 * a));
          REC(i, a).old_current = 0; REC(i, a).old_age = 0
       :: else
       fi
     }
     if
     :: no ->
        known_heard[i] = LEAST(known_heard[i], n);
        a = FIRST_OF(q);
        two_view[i] = (q == (1 << a) && (HEARD_ESTABLISHED(i, a) || !REC(i, a).newcomer))
     :: else
     fi;
     restart(i, b)
  :: else
  fi
}

inline drop_member(i, j) {
  view[i] = view[i] & ~(15 << (4 * (j))); REC(i, j).old_current = 0; REC(i, j).old_age = 0
}

inline lose_if_deaf(i, j) {
  c = THIRD(i, j);
  if
  :: MEMBER(i, j) && REC(i, j).tag[i] == 0 && MEMBER(i, c) &&
     REC(i, j).tag[c] != TAG_OF(i, c) && REC(i, c).tag[i] == MY_TAG(i) ->
     b = MOST(NEXT(i), REC(i, j).generation + 1);
     drop_member(i, j); restart(i, b)
  :: else
  fi
}

inline judge(i) {
  q = 0; o = 0;
  for (a : 0 .. N - 1) {
    if
    :: a != i && IN(view[i], a) ->
       n = (MEMBER(i, a) -> REC(i, a).age : REC(i, a).old_age); m = n;
#ifndef NO_WORD
       if :: MEMBER(i, a) -> m = LEAST(n, REC(i, a).vouched) :: else fi;
#endif
       if
       :: n >= DEATH && m >= DEATH ->
          q = 1; if :: n > m + 1 -> o = 1 :: else fi; drop_member(i, a)
       :: else
       fi
    :: else
    fi
  }
  if
  :: q ->
     if :: o || two_sent[i] < DEATH + EMBARGO -> embargo[i] = EMBARGO :: else fi;
     b = NEXT(i); restart(i, b)
  :: else
  fi;
  for (p : 0 .. N - 1) { if :: p != i -> lose_if_deaf(i, p) :: else fi }
}

/* ------------------------------------------------------------------ the steps of a host */

inline store(i, j) {
  REC(i, j).known = 1; REC(i, j).code = frame[j].code; REC(i, j).joining = frame[j].joining;
  REC(i, j).newcomer = frame[j].newcomer; REC(i, j).generation = frame[j].generation;
  REC(i, j).view = frame[j].view; REC(i, j).phase = frame[j].phase;
  REC(i, j).current = frame[j].current; REC(i, j).ready = frame[j].ready;
  REC(i, j).age = frame[j].age;
  for (a : 0 .. N - 1) { REC(i, j).tag[a] = frame[j].tag[a] }
}

/* stop = 1: the frame is not to be believed yet (a restarted host). */
inline become_known(i, j) {
  stop = 0;
  if
  :: !REC(i, j).known || REC(i, j).code != frame[j].code ->
     two_view[i] = 0;
     if
     :: REC(i, j).known && REC(i, j).age < 2 -> stop = 1
     :: else ->
        REC(i, j).since = SINCE(i, j);
        if
        :: MEMBER(i, j) ->
           REC(i, j).old_current = REC(i, j).current; REC(i, j).old_age = REC(i, j).age;
           if                     /* my only member: that makes no lease longer */
           :: OTHERS(i, view[i]) == OTHERS(i, view[i] & BOTH(i, j)) ->
              REC(i, j).since = MOST(SINCE(i, j), known_heard[i])
           :: else
           fi
        :: else
        fi;
        REC(i, j).heard_me = OLD; REC(i, j).vouched = OLD;
        dirty = 1
     fi
  :: else ->
     if
     :: REC(i, j).age >= DEATH + frame[j].age -> REC(i, j).since = SINCE(i, j)
     :: else
     fi;
     if :: REC(i, j).joining != frame[j].joining -> dirty = 1 :: else fi
  fi
}

/* News of whether I am heard; stop = 1: proof that I may have been given up. */
inline note_heard(i, j) {
  b = OLD;
  if
  :: frame[j].tag[i] == MY_TAG(i) -> b = LEAST(frame[j].ages[i] + frame[j].age, OLD)
  :: else
  fi;
  if :: frame[j].newcomer -> REC(i, j).heard_me = LEAST(REC(i, j).heard_me, b) :: else fi;
  is_alone(i);
  if
  :: !frame[j].joining || yes ->
     two_view[i] = ((IN(frame[j].view, i) || (frame[j].newcomer && HEARD_ESTABLISHED(i, j))) &&
                    ((OTHERS(i, view[i]) | frame[j].view) & ~BOTH(i, j)) == 0);
     lapsed(i, frame[j].age);
     if
     :: q > 4 && (!newcomer[i] || current[i]) -> afresh(i); stop = 1
     :: else ->
        if
        :: IN(frame[j].view, i) ->
           REC(i, j).heard_me = LEAST(REC(i, j).heard_me, b);
           known_heard[i] = LEAST(known_heard[i], REC(i, j).heard_me)
        :: else
        fi
     fi
  :: else
  fi
}

inline hear_started(i, j) {
  c = THIRD(i, j);
  if                              /* its word about the third host */
  :: (MEMBER(i, j) || !frame[j].joining) && IN(view[i], c) && REC(i, c).known ->
     if
     :: !IN(frame[j].view, c) -> REC(i, c).vouched = OLD
     :: IN(frame[j].view, c) && frame[j].tag[c] == TAG_OF(i, c) ->
        REC(i, c).vouched = LEAST(REC(i, c).vouched, frame[j].ages[c] + frame[j].age)
     :: else
     fi
  :: else
  fi;
  if                              /* two owners, after a partition */
  :: j < i && frame[j].tag[i] == MY_TAG(i) && (current[i] & frame[j].current) ->
     current[i] = current[i] & ~frame[j].current;
     b = MOST(generation[i], frame[j].generation) + 1; restart(i, b)
  :: else
  fi;
  if
  :: MEMBER(i, j) ->
     if
     :: frame[j].generation > generation[i] -> b = frame[j].generation; restart(i, b)
     :: else
     fi;
     lose_if_deaf(i, j)
  :: else
  fi;
  admit(i); advance(i)
}

inline hear(i, j) {
  become_known(i, j);
  if
  :: !stop ->
     store(i, j); note_heard(i, j);
     if :: !stop && !joining[i] -> hear_started(i, j) :: else fi
  :: else
  fi;
  frame[j].to[i] = 0;
#ifdef ANSWER_AT_ONCE
  if :: dirty -> send(i) :: else fi
#else
  if                              /* one frame may answer several, and be late */
  :: dirty && started -> owes[i] = 1
  :: dirty && !started -> send(i)
  :: else
  fi
#endif
}

inline tick_of(i) {
  due[i] = 0;
  if
  :: joining[i] ->
     no = 0;
     for (a : 0 .. N - 1) {
       if
       :: a != i && REC(i, a).known && !REC(i, a).joining && REC(i, a).age < DEATH -> no = 1
       :: else
       fi
     }
     if
     :: listened[i] >= (no -> 2 : DEATH) ->
        joining[i] = 0; listened[i] = 0; b = generation[i] + 1; restart(i, b)
     :: else
     fi
  :: else -> if :: !distrust[i] -> judge(i) :: else fi
  fi;
  if :: !joining[i] -> admit(i); advance(i) :: else fi;
  send(i)
}

inline wake(i) {
  up[i] = 1; due[i] = 1; distrust[i] = (asleep[i] > 1); dirty = 0;
#ifndef NO_CLOCK_CHECK
  if :: asleep[i] > LEASE -> afresh(i); dirty = 0 :: else fi;
#endif
  asleep[i] = 0
}

inline forget(i, j) {
  REC(i, j).known = 0; REC(i, j).code = 0; REC(i, j).joining = 0; REC(i, j).newcomer = 0;
  REC(i, j).generation = 0; REC(i, j).view = 0; REC(i, j).phase = 0; REC(i, j).current = 0;
  REC(i, j).ready = 0; REC(i, j).age = 0; REC(i, j).since = 0; REC(i, j).heard_me = 0;
  REC(i, j).vouched = 0; REC(i, j).old_current = 0; REC(i, j).old_age = 0;
  for (b : 0 .. N - 1) { REC(i, j).tag[b] = 0 }
}

inline reboot(i) {
  afresh(i); dirty = 0;
  generation[i] = 0; known_heard[i] = OLD; two_sent[i] = OLD; distrust[i] = 0; embargo[i] = 0;
  up[i] = 1; due[i] = 1; asleep[i] = 0; owes[i] = 0; unsaid[i] = 0;
  for (a : 0 .. N - 1) {
    frame[i].to[a] = 0; frame[a].to[i] = 0;
    if :: a != i -> forget(i, a) :: else fi
  }
}

/* ------------------------------------------------------------------ time and properties */

inline check_owners() {
  for (c : 0 .. N - 1) {
    lapsed(c, 0);
    accepts[c] = ((q == 0 && asleep[c] < LEASE) -> current[c] : 0)
  }
  assert((accepts[0] & accepts[1]) == 0);
  assert((accepts[0] & accepts[2]) == 0);
  assert((accepts[1] & accepts[2]) == 0)
}

inline check_converged() {
  converged = 1; m = 0; p = 0;
  for (a : 0 .. N - 1) { if :: up[a] -> m = m | (1 << a); p = p | accepts[a] :: else fi }
  for (a : 0 .. N - 1) {
    if
    :: up[a] ->
       if :: joining[a] || phase[a] != CONVERGED -> converged = 0 :: else fi;
       for (b : 0 .. N - 1) {
         if :: CODE_IN(view[a], b) != (up[b] -> code[b] + 1 : 0) -> converged = 0 :: else fi
       }
    :: else
    fi
  }
  if :: m && p != ALL -> converged = 0 :: else fi
}

inline tick() {
  check_owners(); check_converged();
  if :: converged -> started = 1 :: else fi;
#ifdef BOUND
  assert(converged || calm < BOUND);
  if :: calm < BOUND -> calm++ :: else fi;
#endif
  m = 255;
  for (c : 0 .. N - 1) {
    if :: up[c] -> due[c] = 1 :: else -> OLDER(asleep[c]) fi;
    if :: joining[c] && listened[c] < DEATH -> listened[c]++ :: else fi;
    if :: embargo[c] -> embargo[c]-- :: else fi;
    distrust[c] = 0;
    OLDER(known_heard[c]); OLDER(two_sent[c]); OLDER(established[c]);
    m = LEAST(m, generation[c]);
    no = 0;
    for (a : 0 .. N - 1) {
      no = no | frame[c].to[a];
      if
      :: a != c && REC(c, a).known ->
         OLDER(REC(c, a).age); OLDER(REC(c, a).since); OLDER(REC(c, a).heard_me);
         OLDER(REC(c, a).vouched);
         if :: REC(c, a).old_age -> OLDER(REC(c, a).old_age) :: else fi;
         if
         :: !IN(view[c], a) && REC(c, a).age >= 2 * DEATH -> forget(c, a)
         :: else -> m = LEAST(m, REC(c, a).generation)
         fi
      :: else
      fi
    }
    if
    :: no -> OLDER(frame[c].age); m = LEAST(m, frame[c].generation)
    :: else ->                    /* nobody will read it: forget it */
       frame[c].code = 0; frame[c].joining = 0; frame[c].newcomer = 0; frame[c].generation = 0;
       frame[c].view = 0; frame[c].phase = 0; frame[c].current = 0; frame[c].ready = 0;
       frame[c].age = 0;
       for (a : 0 .. N - 1) { frame[c].tag[a] = 0; frame[c].ages[a] = 0 }
    fi
  }
  if                              /* only differences of generations matter */
  :: m ->
     for (c : 0 .. N - 1) {
       generation[c] = generation[c] - m;
       if :: frame[c].generation -> frame[c].generation = frame[c].generation - m :: else fi;
       for (a : 0 .. N - 1) {
         if :: REC(c, a).known -> REC(c, a).generation = REC(c, a).generation - m :: else fi
       }
     }
  :: else
  fi
}

/* A frame takes milliseconds: what is on its way arrives before the next host's period ends. */
#define READY(i,j)  (up[i] && frame[j].to[i])
#define ON_THE_WAY  (READY(0,1) || READY(0,2) || READY(1,0) || READY(1,2) || READY(2,0) || \
                     READY(2,1))
#define SENT(j,x,y) (READY(x,j) || READY(y,j))
#define DUE(i)      (up[i] && due[i])
#define OWES(i)     (up[i] && owes[i])
#define ANY_DUE     (DUE(0) || DUE(1) || DUE(2))

ltl eventually { <> [] converged }

init {
  byte i; byte j;
  d_step {
    for (i : 0 .. N - 1) { ready[i] = NONE; reboot(i); code[i] = 0; view[i] = ME(i) }
    i = 0
  }
  if
  :: order[0] = 0; order[1] = 1; order[2] = 2 :: order[0] = 0; order[1] = 2; order[2] = 1
  :: order[0] = 1; order[1] = 0; order[2] = 2 :: order[0] = 1; order[1] = 2; order[2] = 0
  :: order[0] = 2; order[1] = 0; order[2] = 1 :: order[0] = 2; order[1] = 1; order[2] = 0
  fi;
#ifdef FROM_START
  started = 1;
#endif
end:
  do
  :: atomic {
       OWES(0) || OWES(1) || OWES(2) ->
       if :: OWES(0) -> i = 0 :: OWES(1) -> i = 1 :: OWES(2) -> i = 2 fi;
       d_step { send(i); i = 0 }
     }
  :: atomic { !ON_THE_WAY && !ANY_DUE && !OWES(0) && !OWES(1) && !OWES(2) -> d_step { tick(); check_owners() } }
  :: atomic {
       !ON_THE_WAY && ANY_DUE ->
       d_step {
         if
         :: DUE(order[0]) -> i = order[0]
         :: !DUE(order[0]) && DUE(order[1]) -> i = order[1]
         :: else -> i = order[2]
         fi;
         dirty = 0; tick_of(i); check_owners(); i = 0
       }
     }
  :: atomic {
       !started && ON_THE_WAY ->           /* in one order only */
       d_step {
         for (i : 0 .. N - 1) {
           for (j : 0 .. N - 1) {
             if :: READY(i, j) -> dirty = 0; hear(i, j); check_owners() :: else fi
           }
         }
         i = 0; j = 0
       }
     }
  :: atomic {
       started && ON_THE_WAY ->
       if
       :: SENT(0,1,2) -> j = 0 :: SENT(1,0,2) -> j = 1 :: SENT(2,0,1) -> j = 2
       fi;
       if                         /* a frame reaches both at once, unless it is lost for one */
       :: skip
       :: losses ->
          losses--; calm = 0;
          if
          :: READY(0,j) -> frame[j].to[0] = 0 :: READY(1,j) -> frame[j].to[1] = 0
          :: READY(2,j) -> frame[j].to[2] = 0
          fi
       fi;
       d_step {
         for (i : 0 .. N - 1) {
           if :: READY(i, j) -> dirty = 0; hear(i, j); check_owners() :: else fi
         }
         i = 0; j = 0
       }
     }
  :: atomic {
       started && pauses && (up[0] || up[1] || up[2]) ->
       if :: up[0] -> i = 0 :: up[1] -> i = 1 :: up[2] -> i = 2 fi;
       up[i] = 0; due[i] = 0; asleep[i] = 0; owes[i] = 0; pauses--; calm = 0; i = 0
     }
  :: atomic {
       if :: !up[0] -> i = 0 :: !up[1] -> i = 1 :: !up[2] -> i = 2 fi;
       calm = 0;
       if
       :: d_step { wake(i); check_owners() }
       :: d_step { reboot(i); check_owners() }
       fi;
       i = 0
     }
  :: atomic {
       started && mutes && !(mute[0] && mute[1] && mute[2]) ->
       if :: !mute[0] -> mute[0] = 1 :: !mute[1] -> mute[1] = 1 :: !mute[2] -> mute[2] = 1 fi;
       mutes--; calm = 0
     }
  :: atomic {
       if :: mute[0] -> mute[0] = 0 :: mute[1] -> mute[1] = 0 :: mute[2] -> mute[2] = 0 fi;
       calm = 0
     }
  od
}
