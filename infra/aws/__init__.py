"""Rents spot machines on AWS (EC2). Only `sdk.py` imports the SDK, and only when first needed.

provider, registration     the parts as one `Provider`, and how the registry makes it
settings, context, naming  what all parts share: settings, clock and records, names and ids
sdk, errors, error_codes   calls of AWS, and its codes as classes of `infra/errors.py`

offers                     the zones as places to rent in, best first
availability             what is read for that, all at once: the five below
prices, offerings, quota, advisor, regions
create                     one machine, or nothing that bills
request, user_data       what is sent: the body of `RunInstances`, and its first boot
image, network, security_group     what it refers to
existing, acceptance     what was there before, and what EC2 made of it
observe                    one look at a machine
inventory, machine_view  what EC2 lists, and the same as checked values
reading                  what that means: power, reason, times (pure)
vm                       a machine of the seam from its tags
start_stop, experiments    start, stop, and rehearsed interruptions
delete, removal            the end of a run, in all its regions and in one of them
listing, leftovers         every machine of the account, and what is left of one
safeguards                 what ends the bill without us
schedules, alarm         the requests for that
safeguard_times, safeguard_texts, safeguard_preview     when, in which words, and beforehand
doctor, dry_run, permissions       what the account lacks, and the policies that it needs
"""
