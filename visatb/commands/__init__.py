"""The commands of `visatb`, one file each: parse, call, print. Nothing else imports them."""
