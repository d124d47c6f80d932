use super::*;

fn spec(edit: impl FnOnce(&mut RuleSpec)) -> RuleSpec {
    let mut spec = RuleSpec {
        name: Some("web".into()),
        ..RuleSpec::default()
    };
    edit(&mut spec);
    spec
}

#[expect(clippy::unnecessary_wraps, reason = "keys of a rule are optional")]
fn word(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn defaults_are_tcp_and_relay_that_fails_closed() {
    let rule = spec(|_| ()).validate().unwrap();
    assert_eq!(rule.scope, Scope::Forward);
    assert_eq!(rule.protocols, [Protocol::Tcp]);
    assert_eq!(rule.action, Action::Relay);
    assert_eq!(rule.on_missing, OnMissing::Drop);
    assert_eq!((rule.life, rule.listener), (None, None));
    assert!(rule.source.is_any() && rule.destination.is_any());
}

#[test]
fn every_key_has_its_meaning() {
    let rule = spec(|spec| {
        spec.scope = word("local");
        spec.proto = word("any");
        spec.uid = vec!["1000-1999".into(), "0".into()];
        spec.cgroup = vec!["system.slice/nginx.service".into()];
        spec.action = word("redirect");
        spec.to = word("[::ffff:127.0.0.1]:8080");
        spec.on_missing = word("pass");
        spec.expires = word("2h");
        spec.comment = word("café");
    });
    let rule = rule.validate().unwrap();
    assert_eq!(rule.scope, Scope::Local);
    assert_eq!(rule.protocols, [Protocol::Tcp, Protocol::Udp]);
    assert_eq!(rule.users.len(), 2);
    assert_eq!(rule.cgroups[0].to_string(), "system.slice/nginx.service");
    assert_eq!(rule.action, Action::Redirect);
    assert_eq!(rule.listener, Some("127.0.0.1:8080".parse().unwrap()));
    assert_eq!(rule.on_missing, OnMissing::Pass);
    assert_eq!(rule.life, Some(Duration::from_hours(2)));
}

#[test]
fn scopes_and_actions_are_told_apart() {
    for (name, scope) in [
        ("forward", Scope::Forward),
        ("inbound", Scope::Inbound),
        ("local", Scope::Local),
    ] {
        let rule = spec(|spec| spec.scope = word(name)).validate().unwrap();
        assert_eq!((rule.scope, scope_name(rule.scope)), (scope, name));
        assert_eq!(rule.needs_transparent_listener(), scope != Scope::Inbound);
    }
    for (name, action) in [
        ("relay", Action::Relay),
        ("pass", Action::Pass),
        ("drop", Action::Drop),
        ("reject", Action::Reject),
    ] {
        let rule = spec(|spec| spec.action = word(name)).validate().unwrap();
        assert_eq!(rule.action, action);
    }
}

#[test]
fn every_action_is_there_for_every_protocol() {
    for action in ["relay", "redirect", "pass", "drop", "reject"] {
        for (proto, protocols) in [
            ("tcp", &[Protocol::Tcp][..]),
            ("udp", &[Protocol::Udp]),
            ("any", &[Protocol::Tcp, Protocol::Udp]),
        ] {
            let rule = spec(|spec| {
                spec.action = word(action);
                spec.proto = word(proto);
                spec.to = (action == "redirect").then(|| "127.0.0.1:80".into());
            });
            assert_eq!(rule.validate().unwrap().protocols, protocols, "{action}");
        }
    }
}

type Edit = fn(&mut RuleSpec);

fn assert_refused(cases: &[(Edit, &str)]) {
    for (edit, expected) in cases {
        let error = spec(edit).validate().unwrap_err().to_string();
        assert_eq!(error, *expected);
    }
}

#[test]
fn each_bad_word_is_named_with_its_flag() {
    assert_refused(&[
        (
            |spec| spec.name = word("a b"),
            "--name: \"a b\" is not a name: use 1 to 63 letters, digits, '.', '_' or '-'",
        ),
        (
            |spec| spec.name = word("../x"),
            "--name: \"../x\" is not a name: use 1 to 63 letters, digits, '.', '_' or '-'",
        ),
        (
            |spec| spec.scope = word("here"),
            "--scope: \"here\" is not forward, inbound or local",
        ),
        (
            |spec| spec.proto = word("sctp"),
            "--proto: \"sctp\" is not tcp, udp or any",
        ),
        (
            |spec| spec.action = word("deny"),
            "--action: \"deny\" is not relay, redirect, pass, drop or reject",
        ),
        (
            |spec| spec.on_missing = word("fail"),
            "--on-missing: \"fail\" is not pass or drop",
        ),
        (
            |spec| spec.src = vec!["10.0.0/8".into()],
            "--src: \"10.0.0/8\" is not a CIDR, an IP address, set:NAME or @FILE",
        ),
        (
            |spec| spec.dst = vec!["10.0.0.1".into(), "x".into()],
            "--dst: \"x\" is not a CIDR, an IP address, set:NAME or @FILE",
        ),
        (
            |spec| spec.sport = vec!["0".into()],
            "--sport: \"0\" is not a port or range (1 to 65535)",
        ),
        (
            |spec| spec.dport = vec!["9-1".into()],
            "--dport: \"9-1\" is upside down: write 1-9",
        ),
        (
            |spec| spec.iface = vec!["much-too-long-name".into()],
            "--iface: \"much-too-long-name\" is not an interface name",
        ),
        (
            |spec| spec.source = word("server"),
            "--source: \"server\" is not agent or client",
        ),
        (
            |spec| spec.expires = word("30"),
            "--expires: \"30\" has no unit: write \"30s\" for seconds",
        ),
        (
            |spec| spec.comment = word("two\nlines"),
            "--comment: '\\n' in it is a control character: use one line of text",
        ),
    ]);
    let long = spec(|spec| spec.comment = Some("ä".repeat(129)));
    let error = long.validate().unwrap_err().to_string();
    assert_eq!(error, "--comment: 258 bytes are more than 256");
}

#[test]
fn users_and_groups_are_words_of_local_rules() {
    assert_refused(&[
        (
            |spec| {
                spec.scope = word("local");
                spec.uid = vec!["nosuchuser".into()];
            },
            "--uid: \"nosuchuser\" is neither a user, a user id nor a range of ids (0 to 4294967294)",
        ),
        (
            |spec| {
                spec.scope = word("local");
                spec.cgroup = vec!["a/../b".into()];
            },
            "--cgroup: \"a/../b\" is not the path of a control group, such as system.slice/nginx.service",
        ),
    ]);
}

#[test]
fn targets_fit_their_action() {
    assert_refused(&[
        (
            |spec| spec.action = word("redirect"),
            "--to: action redirect needs the ADDR:PORT of a listener on this host",
        ),
        (
            |spec| spec.to = word("tor"),
            "--to: there is no upstream \"tor\": only direct is there",
        ),
        (
            |spec| spec.to = word("127.0.0.1:9050"),
            "--to: relay goes to an upstream by its name: for the listener 127.0.0.1:9050 use action redirect",
        ),
    ]);
    for to in [
        "direct",
        "",
        ":80",
        "127.0.0.1",
        "127.0.0.1:0",
        "[::1]",
        "host:80",
        "224.0.0.1:80",
    ] {
        let redirect = spec(|spec| {
            spec.action = word("redirect");
            spec.to = word(to);
        });
        let error = redirect.validate().unwrap_err().to_string();
        let expected = format!("--to: \"{to}\" is not the ADDR:PORT of a listener");
        assert!(error.starts_with(&expected), "{error}");
    }
    assert!(spec(|spec| spec.to = word("direct")).check().is_ok());
    let redirect = spec(|spec| {
        spec.action = word("redirect");
        spec.to = word("[::1]:8080");
    });
    let redirect = redirect.validate().unwrap();
    assert_eq!(redirect.listener, Some("[::1]:8080".parse().unwrap()));
}

#[test]
fn combinations_that_make_no_sense_name_both_keys() {
    assert_refused(&[
        (
            |spec| {
                spec.scope = word("local");
                spec.source = word("client");
            },
            "--source: with scope local the client is this host, whose address servers see anyway: leave source out",
        ),
        (
            |spec| {
                spec.scope = word("inbound");
                spec.source = word("client");
            },
            "--source: with scope inbound the server is this host, and its answers would go to the client, past the relay: leave source out",
        ),
        (
            |spec| spec.uid = vec!["0".into()],
            "--uid: only scope local knows whose process opened a flow, and scope is forward",
        ),
        (
            |spec| {
                spec.src = vec!["10.0.0.0/8".into(), "!::/0".into()];
                spec.dst = vec!["2001:db8::/32".into()];
            },
            "--dst: it is IPv6 only and src is IPv4 only: no flow is of both families",
        ),
        (
            |spec| {
                spec.src = vec!["::1".into()];
                spec.dst = vec!["10.0.0.1".into(), "10.0.0.2".into()];
            },
            "--dst: it is IPv4 only and src is IPv6 only: no flow is of both families",
        ),
        (
            |spec| {
                spec.scope = word("inbound");
                spec.cgroup = vec!["a".into()];
            },
            "--cgroup: only scope local knows whose process opened a flow, and scope is inbound",
        ),
        (
            |spec| {
                spec.scope = word("local");
                spec.iface = vec!["eth0".into()];
            },
            "--iface: scope local has no interface that flows arrive on: leave iface out",
        ),
        (
            |spec| {
                spec.action = word("pass");
                spec.to = word("direct");
            },
            "--to: action pass hands flows to nobody: leave to out",
        ),
        (
            |spec| {
                spec.action = word("drop");
                spec.on_missing = word("pass");
            },
            "--on-missing: action drop needs nobody to be there: leave on_missing out",
        ),
        (
            |spec| {
                spec.action = word("reject");
                spec.source = word("agent");
            },
            "--source: action reject opens no connection: leave source out",
        ),
    ]);
}

/// Sets may hold any family, and exclusions leave the other one.
#[test]
fn families_that_may_meet_are_left_alone() {
    for (src, dst) in [
        (&["10.0.0.0/8"][..], &["2001:db8::1", "192.0.2.1"][..]),
        (&["10.0.0.0/8"], &["!2001:db8::1"]),
        (&["10.0.0.0/8"], &["2001:db8::1", "set:a"]),
        (&["set:a"], &["10.0.0.1"]),
        (&[], &["10.0.0.1"]),
    ] {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let rule = spec(|spec| {
            spec.src = words(src);
            spec.dst = words(dst);
        });
        assert!(rule.check().is_ok(), "{src:?} {dst:?}");
    }
}

/// A word that makes no sense is told of once, not again for what does not fit beside it.
#[test]
fn nothing_is_concluded_from_a_bad_word() {
    assert_refused(&[
        (
            |spec| {
                spec.action = word("redirekt");
                spec.to = word("127.0.0.1:80");
                spec.proto = word("udp");
            },
            "--action: \"redirekt\" is not relay, redirect, pass, drop or reject",
        ),
        (
            |spec| {
                spec.scope = word("locl");
                spec.uid = vec!["0".into()];
            },
            "--scope: \"locl\" is not forward, inbound or local",
        ),
    ]);
}

#[test]
fn everything_that_is_wrong_is_told_with_its_place() {
    let wrong = spec(|spec| {
        spec.proto = word("tpc");
        spec.dport = ["80", "x", "443", "0"].map(Into::into).into();
        spec.dst = ["y", "10.0.0.0/8", "z"].map(Into::into).into();
    });
    let errors = wrong.validate().unwrap_err();
    let places: Vec<_> = errors.iter().map(|error| (error.key, error.word)).collect();
    assert_eq!(
        places,
        [
            ("proto", None),
            ("dst", Some(0)),
            ("dst", Some(2)),
            ("dport", Some(1)),
            ("dport", Some(3)),
        ]
    );
    assert_eq!(errors.to_string().matches("; --").count(), 4);
}

#[test]
fn a_rule_for_every_port_of_this_host_takes_answers() {
    type Edit = fn(&mut RuleSpec);
    let takes_answers = |edit: Edit| {
        let rule = spec(|spec| {
            spec.scope = word("inbound");
            spec.proto = word("any");
            edit(spec);
        });
        rule.validate().unwrap().takes_answers()
    };
    let taking: [Edit; 3] = [
        |_| (),
        |spec| spec.proto = word("udp"),
        |spec| spec.action = word("drop"),
    ];
    assert!(taking.into_iter().all(takes_answers));
    let sparing: [Edit; 4] = [
        |spec| spec.proto = word("tcp"),
        |spec| spec.dport = vec!["53".into()],
        |spec| spec.action = word("pass"),
        |spec| spec.scope = word("forward"),
    ];
    assert!(!sparing.into_iter().any(takes_answers));
}
