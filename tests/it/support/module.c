/* A module for tests: one command of each kind that matters to who routes them. Only what it uses of the module API is
 * declared, as redismodule.h of Redis 6.2 and later declares it. */

#include <stddef.h>

typedef struct Context Context;
typedef struct String String;
typedef struct Reply Reply;
typedef struct Blocked Blocked;
typedef int (*Command)(Context *, String **, int);
typedef void (*Free)(Context *, void *);

static void (*set_attributes)(Context *, const char *, int, int);
static int (*create_command)(Context *, const char *, Command, const char *, int, int, int);
static Reply *(*call)(Context *, const char *, const char *, ...);
static int (*reply_with_reply)(Context *, Reply *);
static int (*reply_with_number)(Context *, long long);
static int (*wrong_arity)(Context *);
static int (*replicate)(Context *);
static int (*asks_for_keys)(Context *);
static void (*key_at)(Context *, int);
static Blocked *(*block)(Context *, Command, Command, Free, long long);

#define OK 0
#define ERR 1

/* probe.set KEY VALUE */
static int set(Context *context, String **words, int count) {
    if (count != 3) return wrong_arity(context);
    Reply *reply = call(context, "SET", "ss", words[1], words[2]);
    replicate(context);
    return reply_with_reply(context, reply);
}

/* probe.get KEY */
static int get(Context *context, String **words, int count) {
    if (count != 2) return wrong_arity(context);
    return reply_with_reply(context, call(context, "GET", "s", words[1]));
}

/* probe.incr LABEL KEY..: which of its words are keys only it can say. */
static int incr(Context *context, String **words, int count) {
    if (count < 3) return wrong_arity(context);
    if (asks_for_keys(context)) {
        for (int at = 2; at < count; at++) key_at(context, at);
        return OK;
    }
    for (int at = 2; at < count; at++) call(context, "INCR", "s", words[at]);
    replicate(context);
    return reply_with_number(context, count - 2);
}

static int is_over(Context *context, String **words, int count) {
    (void)words;
    (void)count;
    return reply_with_number(context, 7);
}

/* probe.wait KEY: answers after a third of a second. */
static int wait(Context *context, String **words, int count) {
    (void)words;
    if (count != 2) return wrong_arity(context);
    block(context, NULL, is_over, NULL, 300);
    return OK;
}

int RedisModule_OnLoad(Context *context, String **words, int count) {
    (void)words;
    (void)count;
    int (*find)(const char *, void *) = ((void **)context)[0];
    find("RedisModule_SetModuleAttribs", &set_attributes);
    find("RedisModule_CreateCommand", &create_command);
    find("RedisModule_Call", &call);
    find("RedisModule_ReplyWithCallReply", &reply_with_reply);
    find("RedisModule_ReplyWithLongLong", &reply_with_number);
    find("RedisModule_WrongArity", &wrong_arity);
    find("RedisModule_ReplicateVerbatim", &replicate);
    find("RedisModule_IsKeysPositionRequest", &asks_for_keys);
    find("RedisModule_KeyAtPos", &key_at);
    find("RedisModule_BlockClient", &block);
    set_attributes(context, "probe", 1, 1);
    if (create_command(context, "probe.set", set, "write deny-oom", 1, 1, 1) == ERR) return ERR;
    if (create_command(context, "probe.get", get, "readonly fast", 1, 1, 1) == ERR) return ERR;
    if (create_command(context, "probe.incr", incr, "write getkeys-api", 2, 2, 1) == ERR) return ERR;
    /* Not every version knows that flag. */
    if (create_command(context, "probe.wait", wait, "write blocking", 1, 1, 1) == ERR) {
        return create_command(context, "probe.wait", wait, "write", 1, 1, 1);
    }
    return OK;
}
