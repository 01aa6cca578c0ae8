//! Whom the workload runs as: `user`, `uid`, `user:group`, `uid:gid`, by the rules that container
//! runtimes follow. Pure: the texts of /etc/passwd and /etc/group come as arguments.

#[derive(Debug, PartialEq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let mut parts = spec.splitn(2, ':');
    let user = parts.next().filter(|u| !u.is_empty()).unwrap_or("0");
    let group_spec = parts.next().unwrap_or("");
    let account = find_account(user, passwd);
    let uid = match (&account, user.parse::<u32>()) {
        (Some(found), _) => found.uid,
        (None, Ok(number)) => number,
        (None, Err(_)) => return Err(format!("user {:?} is not in /etc/passwd", user)),
    };
    let (gid, groups) = if group_spec.is_empty() {
        let name = account.as_ref().map_or("", |a| a.name);
        (account.as_ref().map_or(0, |a| a.gid), memberships(name, group))
    } else {
        (find_group(group_spec, group)?, Vec::new())
    };
    let home = account.map(|a| a.home).filter(|h| !h.is_empty()).unwrap_or("/").to_string();
    Ok(Identity { uid, gid, groups, home })
}

/// By number where it is one, else by name: a user who is called "0" gets nothing by it.
fn find_account<'a>(user: &str, passwd: &'a str) -> Option<Account<'a>> {
    let number = user.parse::<u32>().ok();
    passwd.lines().filter_map(account).find(|a| match number {
        Some(uid) => a.uid == uid,
        None => a.name == user,
    })
}

fn account(line: &str) -> Option<Account<'_>> {
    let cells: Vec<&str> = line.split(':').collect();
    Some(Account {
        name: cells.first().filter(|n| !n.is_empty())?,
        uid: cells.get(2)?.parse().ok()?,
        gid: cells.get(3)?.parse().ok()?,
        home: cells.get(5).unwrap_or(&""),
    })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    if let Ok(number) = wanted.parse::<u32>() {
        return Ok(number);
    }
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|cells| cells[0] == wanted)
        .find_map(|cells| cells.get(2)?.parse().ok())
        .ok_or_else(|| format!("group {:?} is not in /etc/group", wanted))
}

fn memberships(name: &str, group: &str) -> Vec<u32> {
    let lists = |cells: &Vec<&str>| cells.get(3).map_or(false, |m| m.split(',').any(|u| u == name));
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|cells| !name.is_empty() && lists(cells))
        .filter_map(|cells| cells[2].parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:other,app\nwheel:x:10:app\nbad:x\nx:y:z:app\n";

    fn id(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let found = resolve(spec, PASSWD, GROUP).unwrap();
        (found.uid, found.gid, found.groups, found.home)
    }

    #[test]
    fn names_numbers_and_pairs() {
        assert_eq!(id(""), (0, 0, vec![], "/root".into()));
        assert_eq!(id("app"), (1000, 1001, vec![50, 10], "/home/app".into()));
        assert_eq!(id("1000"), (1000, 1001, vec![50, 10], "/home/app".into()));
        assert_eq!(id("app:staff"), (1000, 50, vec![], "/home/app".into()));
        assert_eq!(id("4242:17"), (4242, 17, vec![], "/".into()));
        assert_eq!(id("4242"), (4242, 0, vec![], "/".into()));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("app:nogroup", PASSWD, GROUP).is_err());
        assert!(resolve("-1", PASSWD, GROUP).is_err());
        assert_eq!(resolve("7", "", "").unwrap().gid, 0);
    }
}
